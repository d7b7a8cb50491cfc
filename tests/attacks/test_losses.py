"""What attacks maximise, by hand in float64."""

import math

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.attacks.losses import Goal, cross_entropy, dlr, margin, targeted_dlr
from stalwart.core.random import generator

LOGITS = [[2.0, -1.0, 0.5, 1.0], [0.0, 0.0, 3.0, -4.0]]
Y = [0, 3]


def tensors(classes):
    return torch.tensor([row[:classes] for row in LOGITS], dtype=torch.float64), torch.tensor([0, min(3, classes - 1)])


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_losses_by_hand(classes):
    z, y = tensors(classes)
    for row, label, ce, gap, ratio in zip(
        z.tolist(), y.tolist(), cross_entropy(z, y), margin(z, y), dlr(z, y), strict=True
    ):
        others = [value for j, value in enumerate(row) if j != label]
        assert float(ce) == pytest.approx(math.log(sum(map(math.exp, row))) - row[label], abs=1e-12)
        assert float(gap) == pytest.approx(max(others) - row[label], abs=1e-12)
        top = sorted(row, reverse=True)
        expected = max(others) - row[label]
        if classes >= 3:
            expected /= top[0] - top[2]
        assert float(ratio) == pytest.approx(expected, abs=1e-9)


def test_dlr_of_three_equal_logits_is_finite():
    z = torch.zeros(1, 3, requires_grad=True)
    value = dlr(z, torch.tensor([0]))
    value.sum().backward()
    assert value.isfinite().all()
    assert z.grad.isfinite().all()


def test_dlr_ignores_scale_and_the_margin_does_not():
    z, y = tensors(4)
    assert torch.allclose(dlr(1000 * z, y), dlr(z, y), atol=1e-9)
    assert torch.allclose(margin(1000 * z, y), 1000 * margin(z, y))


def test_losses_take_a_leading_axis_of_draws():
    z, y = tensors(4)
    stacked = torch.stack([z, z + 1, 2 * z])
    for loss in (cross_entropy, margin, dlr):
        assert torch.allclose(loss(stacked, y), torch.stack([loss(one, y) for one in stacked]))


def test_targeted_goals_by_hand():
    z, y = tensors(4)
    target = torch.tensor([1, 2])
    pull = Goal("targeted-ce", y, target)(z)
    assert torch.allclose(pull, -cross_entropy(z, target))
    gap = Goal("targeted-margin", y, target)(z)
    assert gap.tolist() == pytest.approx([-1.0 - 2.0, 3.0 + 4.0])
    part = Goal("targeted-margin", y, target).select(torch.tensor([1]))
    assert part(z[1:]).tolist() == pytest.approx([7.0])


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_the_targeted_ratio_by_hand(classes):
    z, y = tensors(classes)
    target = torch.tensor([1, 0])
    found = Goal("targeted-dlr", y, target)(z)
    for row, label, aim, ratio in zip(z.tolist(), y.tolist(), target.tolist(), found.tolist(), strict=True):
        top = sorted(row, reverse=True)
        scale = top[0] - (top[2] + top[3]) / 2 if classes == 4 else 1.0
        assert ratio == pytest.approx(-(row[label] - row[aim]) / scale, abs=1e-9)
    stacked = torch.stack([z, 2 * z])
    assert torch.allclose(
        targeted_dlr(stacked, y, target), torch.stack([targeted_dlr(one, y, target) for one in stacked])
    )


def test_broken_counts_ties_and_nan():
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [math.nan, 0.0], [0.0, math.nan]])
    assert Goal("ce", torch.zeros(5, dtype=torch.long)).broken(z).tolist() == [False, True, True, True, True]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "scaled-ce", "targeted-ce", "targeted-margin", "targeted-dlr"])
def test_every_loss_attacks_few_classes(classes, loss):
    torch.manual_seed(0)
    model = nn.Linear(5, classes)
    x = torch.rand(10, 5, generator=generator(0))
    y = model(x).argmax(1)
    result = sw.attack("pgd", loss=loss, restarts=2)(model, x, y, within=sw.Linf(1.0))
    assert result.success.float().mean() >= 0.5
    assert result.margin.isfinite().all()


def test_saturated_logits_starve_the_cross_entropy_but_not_the_margins():
    torch.manual_seed(0)
    model = nn.Linear(5, 4)
    x = torch.rand(20, 5, generator=generator(0))
    y = model(x).argmax(1)
    with torch.no_grad():
        model.weight.mul_(1e5)
        model.bias.mul_(1e5)
    within = sw.Linf(0.4)
    rates = {
        loss: sw.attack("bim", loss=loss)(model, x, y, within=within).success.sum() for loss in ("ce", "margin", "dlr")
    }
    assert rates["margin"] > rates["ce"]
    assert rates["dlr"] > rates["ce"]


def test_targeted_restarts_visit_the_classes_from_the_most_likely_down():
    torch.manual_seed(0)
    model = nn.Linear(5, 4)
    x = torch.rand(6, 5, generator=generator(0))
    y = model(x).argmax(1)
    order = model(x).argsort(1, descending=True)[:, 1:]
    for restarts in (1, 2, 3):
        # Far steps to a corner of the box: the aim decides which class the corner favours.
        attack = sw.attack("bim", loss="targeted-margin", steps=1, step=5.0, restarts=restarts)
        result = attack(model, x, y, within=sw.Linf(0.05))
        held = ~result.success
        candidates = []
        for r in range(restarts):
            w = model.weight[order[:, r]] - model.weight[y]
            z = (x + 0.05 * w.sign()).clamp(0, 1)
            logits = model(z).detach()
            candidates.append(logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(1))
        best = torch.stack(candidates).amin(0)
        assert held.any()
        assert torch.allclose(result.margin[held], best[held], atol=1e-5)
