"""Attacks in a ball of a given radius: on linear models they succeed exactly where it is large enough, within 3 %."""

import pytest
import torch
from exact import BALLS, distances, linear, radii_around

import stalwart as sw
from stalwart.attacks.autoattack import member
from stalwart.attacks.losses import LossName

LOSSES = LossName.__args__


def cases():
    """Yield attack, options, norm and classes.

    Of several boundaries an untargeted loss may miss the nearest, and losses other than a margin weigh one class against the
    others. Auto-PGD's sparse steps alone do not come as near in l1; as a member of AutoAttack it need not.
    """
    for norm in BALLS:
        yield "autoattack", {}, norm, 5
        for options in ({}, {"targeted": True}):
            yield "fab", {"early": True, "steps": 20, **options}, norm, 5
    for norm in ("linf", "l2"):
        for loss in LOSSES:
            yield "apgd", {"loss": loss, "steps": 40}, norm, 2
            yield "pgd", {"loss": loss, "steps": 60}, norm, 2
        for loss in ("targeted-margin", "targeted-dlr"):
            yield "apgd", {"loss": loss, "steps": 40}, norm, 5
        yield "pgd", {"loss": "targeted-margin", "steps": 120, "restarts": 4}, norm, 5
        yield "bim", {"steps": 60}, norm, 2
        for name in ("double-precision", "straight-through", "transfer"):
            yield name, {"attack": "pgd", "options": {"steps": 60}}, norm, 2
    yield "autoattack", {"version": "plus"}, "linf", 2
    yield "fgsm", {}, "linf", 2
    yield "square", {"queries": 1000}, "linf", 2


@pytest.fixture(autouse=True)
def _short_members(monkeypatch):
    """Let AutoAttack's members be as long as the others here."""

    def shortened(name, version, norm):
        registered, options = member(name, version, norm)
        short = {"queries": 200} if registered == "square" else {"steps": 40}
        return registered, options | short | ({"restarts": 2} if options.get("restarts", 1) > 1 else {})

    monkeypatch.setattr("stalwart.attacks.autoattack.member", shortened)


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize(("name", "options", "norm", "classes"), list(cases()))
def test_an_attack_succeeds_exactly_where_it_must(name, options, norm, classes, boxed):
    model, x, y, box = linear(classes, boxed)
    exact, binds = distances(model, x, y, box, norm)
    assert binds.any() == boxed, "the box must bind for some samples, and only where it is meant to"
    radius = radii_around(exact)
    result = sw.attack(name, **options)(model, x, y, within=BALLS[norm](radius, **box))
    assert torch.equal(result.success, exact.isfinite() & (radius >= exact))
    assert 0 < result.success.sum() < len(x)
