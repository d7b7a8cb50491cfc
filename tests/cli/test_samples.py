"""How many inputs it takes, from the command line."""

import pytest

from stalwart.evaluation.statistics import samples_for_difference, samples_for_width


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (("--width", "0.02"), samples_for_width(0.02)),
        (("--width", "4/100", "--rate", "0.9"), samples_for_width(0.04, 0.9)),
        (("--difference", "0.03"), samples_for_difference(0.03, 0.2)),
        (("--difference", "0.03", "--disagreement", "0.1", "--power", "0.9"), samples_for_difference(0.03, 0.1, 0.9)),
    ],
)
def test_the_number_is_printed(stalwart, words, number):
    said = stalwart("samples", *words)
    assert (said.code, said.out, said.err) == (0, f"{number}\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name --width of an interval, or --difference between two models; one of the two"),
        (("--width", "0.1", "--difference", "0.1"), "one of the two"),
        (("--width", "wide"), "'wide' is not a number"),
        (("--width", "2"), "a width lies in (0, 1), got 2"),
        (("--difference", "0.3"), "the disagreement lies in [0.3, 1], got 0.2"),
    ],
)
def test_impossible_wishes(refused, words, message):
    assert message in refused(2, "samples", *words)
