"""FAB: linear models whose nearest adversarial point is known, results in the set."""

import math

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.attacks.hyperplanes import lengths
from stalwart.core.errors import UsageError

RADII = torch.tensor([0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0], dtype=torch.float64)
WIDE = {"low": -100.0, "high": 100.0}
BALLS = [(sw.Linf, "linf", 1), (sw.L2, "l2", 2), (sw.L1, "l1", math.inf)]


def nearest_by_hand(model, x, y, dual):
    """Return the distance to the nearest boundary of a linear model: min_j (z_y - z_j) / ||w_j - w_y||_dual."""
    logits = model(x).detach()
    slopes = (model.weight[None] - model.weight[y][:, None]).detach().norm(p=dual, dim=2).clamp_min(1e-30)
    reach = (logits.gather(1, y[:, None]) - logits) / slopes
    return reach.scatter(1, y[:, None], torch.inf).amin(1)


@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_nearest_point_of_a_linear_model_is_found(linear_case, ball, classes, targeted):
    kind, norm, dual = ball
    attack, early = (sw.attack("fab", targeted=targeted, steps=20, early=early) for early in (False, True))
    for seed in range(3):
        model, x, y, worst = linear_case(classes, seed)
        found = attack(model, x, y, within=kind(100.0, **WIDE))
        wanted = nearest_by_hand(model, x, y, dual)
        assert (found.distance >= wanted * (1 - 1e-9)).all()
        assert (found.distance <= 1.002 * wanted).all()
        assert torch.allclose(lengths(norm, found.x_adv - x), found.distance)
        assert (model(found.x_adv).argmax(1) != y).all()
        sizes = RADII * (5 if kind is sw.L1 else 1)
        for result in (attack(model, x, y, within=kind(sizes, **WIDE)), early(model, x, y, within=kind(sizes, **WIDE))):
            assert torch.equal(result.success, worst(sizes, dual) <= 0)
            assert 0 < result.success.sum() < len(x)


def test_the_box_counts():
    # 0.9 z_0 + 0.1 z_1 = 1 from (0.9, 0.1): the first coordinate has room for 0.1 only, which gains 0.09 of 0.18.
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [0.9, 0.1]]))
        model.bias.copy_(torch.tensor([0.0, -1.0 + 1e-3]))
    x, y = torch.tensor([[0.9, 0.1]], dtype=torch.float64), torch.tensor([0])
    found = sw.attack("fab")(model, x, y, within=sw.Linf(1.0))
    assert float(found.distance) == pytest.approx((0.179 - 0.09) / 0.1, rel=1e-2)
    assert (found.x_adv <= 1).all()


def test_a_sample_is_done_within_its_radius_and_costs_stay_with_it(digits, counting):
    model, x, y = digits
    counter = counting(model)
    within = sw.Linf(torch.linspace(0, 0.3, 60))
    result = sw.attack("fab", targeted=True, steps=10, early=True)(counter, x, y, within=within)
    assert int(result.cost.forwards.sum()) == sum(counter.forwards)
    assert int(result.cost.backwards.sum()) == sum(counter.backwards)
    held = ~result.success
    assert 5 < held.sum() < 55
    assert (result.cost.backwards[held] == 30).all()
    assert result.cost.backwards[result.success].double().mean() < 20
    assert result.distance is None, "a search that stops at the radius does not know it"
    nearest = sw.attack("fab", targeted=True, steps=10)(model, x, y, within=within)
    assert torch.equal(nearest.success, result.success)
    assert (nearest.distance[held] > within.radius[held]).all()


@pytest.mark.parametrize("kind", [sw.Linf, sw.L2, sw.L1])
def test_restarts_never_lengthen_and_a_seed_fixes_the_result(digits, kind):
    model, x, y = digits
    within = kind({sw.Linf: 0.05, sw.L2: 0.3, sw.L1: 1.0}[kind])
    one, three, again = (sw.attack("fab", steps=2, restarts=r)(model, x, y, within=within, seed=1) for r in (1, 3, 3))
    assert torch.equal(three.distance, again.distance)
    assert (three.distance <= one.distance).all()
    wrong = model(x).argmax(1) != y
    assert (three.distance[wrong] == 0).all()
    assert torch.equal(three.success, three.distance <= float(within.radius))
    margins = sw.attack("pgd", steps=60, loss="margin", restarts=2)
    inside = margins(model, x, y, within=within.with_eps(0.9 * three.distance.clamp_min(1e-6)))
    assert inside.success[~wrong].float().mean() < 0.35, "few have a misclassified point much nearer than FAB's"


def test_a_randomised_model_is_searched_on_averages(noisy):
    model, x, y = noisy
    within = sw.Linf(0.3)
    result = sw.attack("fab", steps=6, eot=5)(model, x, y, within=within)
    assert within.contains(x, result.x_adv).all()
    assert (result.cost.backwards == 6 * 3).all(), "K backward passes a step on every sample: none leaves"


@pytest.mark.parametrize("options", [{"steps": 0}, {"targets": 0}, {"eta": 0.5}, {"beta": 1.0}, {"alpha": 2.0}])
def test_bad_options(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        sw.attack("fab", **options)
