"""What reports say of attacks on events: converged, transferred and median flips apart, as a reader would count them."""

import copy

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.attacks.event_patch import EventPatch
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import derive, generator
from stalwart.evaluation import evaluate, few_flips, judge_patch
from stalwart.hardware import Mismatch
from stalwart.sets import Events


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.Softplus(), nn.Linear(16, 3))
    x = (torch.rand(30, 2, 8, 8, generator=generator(0)) < 0.4).float()
    with torch.no_grad():
        model[3].weight.mul_(6)
        y = model(x).argmax(1)
    y[:5] = (y[:5] + 1) % 3  # decided wrongly
    return model, x, y


def test_rows_are_what_a_reader_would_count(case):
    model, x, y = case
    attack, cap = sw.attack("spikefool"), Events(22)
    (row,) = few_flips(model, x, y, {"few": attack}, cap, Mismatch(0.1))
    found = attack(model, x[5:], y[5:], within=cap)
    changed = (found.x_adv != x[5:]).flatten(1).sum(1)
    done = found.success
    assert 0 < done.sum() < 25
    assert (row.attack, row.converged.correct, row.converged.total) == ("few", int(done.sum()), 25)
    assert row.flips == float(changed[done].double().quantile(0.5))
    assert row.forwards == float(found.cost.forwards.double().mean())
    assert row.backwards == float(found.cost.backwards.double().mean())
    with Mismatch(0.1).chip(model, derive(0, "chip")), torch.no_grad():
        before, after = model(x[5:]).argmax(1)[done] == y[5:][done], model(found.x_adv).argmax(1)[done] != y[5:][done]
    assert (row.agreed.correct, row.agreed.total) == (int(before.sum()), int(done.sum()))
    assert row.transferred.correct == int((before & after).sum())


def test_what_lies_just_beyond_the_boundary_does_not_all_transfer(case):
    model, x, y = case
    found = sw.attack("spikefool")(model, x[5:], y[5:], within=Events(60))
    assert found.success.all()
    second = copy.deepcopy(model)
    with torch.no_grad():  # all labels are 2; half of what fools is no longer beyond the boundary
        second[3].bias[2] += found.margin.abs().median() + 1e-6
    (row,) = few_flips(model, x, y, {"few": sw.attack("spikefool")}, Events(60), second)
    assert (row.converged.correct, row.agreed.correct, row.transferred.correct) == (25, 25, 12)


def test_another_model_is_asked_too(case):
    model, x, y = case
    (same,) = few_flips(model, x, y, {"few": sw.attack("spikefool")}, Events(60), model)
    assert same.transferred.value == same.agreed.value == same.converged.value == 1
    (alone,) = few_flips(model, x, y, {"few": sw.attack("spikefool")}, Events(60))
    assert alone.transferred is None
    assert alone.agreed is None
    (none,) = few_flips(model, x, y, {"few": sw.attack("spikefool")}, Events(0), model)
    assert none.flips is None
    assert none.transferred is None


def test_what_cannot_be_counted_is_refused(case):
    model, x, y = case
    attacks = {"few": sw.attack("spikefool")}
    with pytest.raises(InputError, match="other than 0 and 1"):
        few_flips(model, 0.5 * x, y, attacks, Events(3))
    with pytest.raises(InputError, match="none of 5 rasters rightly"):
        few_flips(model, x[:5], y[:5], attacks, Events(3))
    with pytest.raises(UsageError, match="one number of flips"):
        few_flips(model, x, y, attacks, Events([3] * 30))


def test_patches_are_held_against_random_ones():
    """Class 1 has more events of the second polarity: a patch of these hits its target, one of mixed events does not."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[10.0, -10.0], [-10.0, 10.0]]))
        model[2].bias.copy_(torch.tensor([2.0, -2.0]))
    x = (torch.rand(30, 2, 8, 8, generator=generator(1)) < 0.4).float()
    with torch.no_grad():
        y = model(x).argmax(1)
    y[-1] = 1 - y[-1]  # decided wrongly
    patch = EventPatch(target=1, share=0.5, batch=10, steps=100, confidence=0.99).fit(model, x[:10], y[:10])
    row = judge_patch(model, patch, x[10:], y[10:], seed=1)
    others = int((y[10:-1] == 0).sum())
    assert row.fitted.total == row.control.total == row.broken.total == others > 10
    assert row.fitted.correct == row.broken.correct == others
    assert row.control.correct == row.control_broken.correct < others // 2
    assert (row.bins, row.events, row.target) == (patch.bins, patch.events, 1)


def test_the_suite_reports_flips_on_events_alone(case):
    model, x, y = case
    found, table = evaluate(model, x, y, Events(30), "events")
    rows = {row.name: row for row in found.attacks}
    assert {"spikefool", "binary-pgd", "probabilistic-pgd", "pgd-ce", "noise"} <= rows.keys()
    for name, row in rows.items():
        broken = sum(clean > left for clean, left in zip(table.columns["clean"], table.columns[name], strict=True))
        assert (row.flips is None) == (broken == 0)
        assert row.flips is None or 1 <= row.flips <= 30
    fewest = rows["spikefool"]
    assert fewest.flips < 30
    assert fewest.robust.value < rows["noise"].robust.value
    others, _ = evaluate(model, x, y, sw.Linf(0.1), "events")
    assert [row.name for row in others.attacks] == ["noise", "fgsm", "pgd-ce", "pgd-margin"]
    assert all(row.flips is None for row in others.attacks)
