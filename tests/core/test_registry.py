"""Building records from names and untrusted options."""

import pytest

from stalwart.attacks.pgd import PGD
from stalwart.attacks.table import ATTACKS
from stalwart.core.errors import UsageError
from stalwart.core.registry import build, lookup, options_of, suggest
from stalwart.models.table import MODELS
from stalwart.objectives.table import OBJECTIVES
from stalwart.sets.table import SETS

TABLES = {"attack": ATTACKS, "objective": OBJECTIVES, "set": SETS, "model": MODELS}


def test_a_name_is_imported():
    assert lookup("attack", ATTACKS, "pgd") is PGD


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, table in TABLES.items() for name in table],
)
def test_every_line_of_every_table_leads_somewhere_documented(kind, name):
    assert lookup(kind, TABLES[kind], name).__doc__


def test_an_unknown_name_suggests_the_nearest_and_lists_the_rest():
    with pytest.raises(
        UsageError, match=r"unknown attack 'pdg'\. Did you mean 'pgd'\? Known: adaptive.*, fgsm, .*transfer"
    ):
        lookup("attack", ATTACKS, "pdg")


def test_nothing_is_suggested_for_a_name_like_no_other():
    assert suggest("zzzzzz", ATTACKS) == ""


def test_options_list_every_default():
    assert options_of(PGD)["steps"] == 20
    assert options_of(PGD)["eot"] == 1


def test_fractions_are_parsed():
    assert build("attack", ATTACKS, "pgd", {"step": "2/255"}).step == 2 / 255
    assert build("objective", OBJECTIVES, "trades", {"eps": "8/255"}).eps == 8 / 255


def test_defaults_are_those_of_the_record():
    assert build("attack", ATTACKS, "pgd", {}) == PGD()


def test_an_unknown_option_suggests_the_nearest_and_lists_the_rest():
    with pytest.raises(
        UsageError, match=r"attack 'pgd' has no option 'step_size'\. Did you mean 'step.?'\? It takes: .*restarts"
    ):
        build("attack", ATTACKS, "pgd", {"step_size": 0.1})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": "many"}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"steps": None}, "steps"),
        ({"steps": 0}, "steps"),
        ({"restarts": -1}, "restarts"),
        ({"eot": 0}, "eot"),
        ({"step": "abc"}, "step"),
        ({"step": -0.1}, "step"),
        ({"relative_step": 0}, "relative_step"),
        ({"step": 0.1, "relative_step": 0.1}, "relative_step"),
        ({"loss": "hinge"}, "loss"),
        ({"average": "votes"}, "average"),
        ({"random_start": "perhaps"}, "random_start"),
    ],
)
def test_a_bad_value_is_refused_and_its_option_named(options, named):
    with pytest.raises(UsageError, match=named) as caught:
        build("attack", ATTACKS, "pgd", options)
    assert "pydantic" not in str(caught.value)
    assert "function-" not in str(caught.value)


def test_a_record_cannot_be_changed():
    with pytest.raises(AttributeError):
        PGD().steps = 3
