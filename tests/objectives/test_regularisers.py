"""Regularisers of certified training: values by hand, and when they count."""

import pytest
import torch
from torch import nn

from stalwart.bounds.interval import Interval
from stalwart.core.registry import build
from stalwart.models import Classifier, Normalise
from stalwart.models.param_ramp import ParamRamp
from stalwart.objectives import OBJECTIVES, Moment
from stalwart.objectives.bounds_adapter import CleanPass
from stalwart.objectives.regularisers import relu_balance, tightness

EPS, CLASSES = 0.2, 3
FULL = Moment(0, 5)


def make(name, **options):
    return build("objective", OBJECTIVES, name, {"eps": EPS} | options)


def interval(lower, upper):
    return Interval(torch.tensor(lower), torch.tensor(upper))


def test_tightness_by_hand():
    # Mean half-widths: input 0.1; layers 0.1 (as wide), 0.4 (too wide), 0.2 (just within tau = 0.5).
    layers = [interval([[0.0, 0.0]], [[0.2, 0.2]]), interval([[0.0, 0.0]], [[0.2, 1.4]]), interval([[1.0]], [[1.4]])]
    lower, upper = torch.tensor([[0.4, 0.5]]), torch.tensor([[0.6, 0.7]])
    expected = (0 + (0.5 - 0.1 / 0.4) + 0) / (0.5 * 3)
    assert float(tightness(layers, lower, upper, 0.5)) == pytest.approx(expected, rel=1e-5)
    flat = torch.zeros(1, 2, requires_grad=True)
    value = tightness([Interval(flat, flat)], lower, upper, 0.5)
    value.backward()
    assert float(value.detach()) == 0
    assert torch.isfinite(flat.grad).all()


def test_relu_balance_by_hand():
    # Centres 3, -1, 0.5, -0.5: active 3 and 0.5, inactive -1; the last is unstable.
    layer = interval([[2.0, -1.5, 0.25, -2.0]], [[4.0, -0.5, 0.75, 1.0]])
    centres = [3.0, -1.0, 0.5, -0.5]
    middle = sum(centres) / 4
    active, inactive = (3 + 0.5) / 4, 1 / 4
    spread = [(c - middle) ** 2 for c in centres]
    one, two = inactive / active, spread[1] / (spread[0] + spread[2])
    expected = (max(0, 0.5 - one) + max(0, 0.5 - two)) / (0.5 * 1)
    assert float(relu_balance([layer], 0.5)) == pytest.approx(expected, rel=1e-5)


def test_balance_at_its_ends():
    one_sided = interval([[1.0, 2.0]], [[2.0, 3.0]])
    assert float(relu_balance([one_sided], 0.5)) == pytest.approx(2.0)
    assert float(relu_balance([interval([[-1.0]], [[1.0]])], 0.5)) == 0.0
    even = interval([[1.0, -2.0]], [[2.0, -1.0]])
    assert float(relu_balance([even], 0.5)) == 0.0
    lower = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    relu_balance([Interval(lower, lower + 2)], 0.5).backward()
    assert torch.isfinite(lower.grad).all()


def test_regularisers_fade_as_the_radius_grows(deep, images):
    x, y = images
    # Batch norm in training mode depends on the batch alone, so that one model serves all calls.
    model = Classifier(Normalise([0.5], [0.25]), deep, nn.Linear(CLASSES, CLASSES)).train()
    for time, weight in ((5, 0.0), (3, 0.25), (2, 0.375)):
        plain, regular = (make("ibp", regularise=value).loss(model, x, y, Moment(0, time))[0] for value in (0, 0.5))
        eps = (time - 1) / 4 * EPS
        lower, upper = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
        layers = [one for _, one in CleanPass(model, x).box(lower, upper).preactivations]
        expected = tightness(layers, lower * 4, upper * 4, 0.5) + relu_balance(layers, 0.5)
        assert float(expected.detach()) > 0.01
        torch.testing.assert_close(regular - plain, weight * expected, rtol=1e-4, atol=1e-5)


def test_l1_counts_weights_of_layers_alone(small, points):
    x, y = points
    net = nn.Sequential(small[0], ParamRamp((6,)).double(), small[2])
    difference = make("sabr", l1=0.1).loss(net, x, y, FULL)[0] - make("sabr").loss(net, x, y, FULL)[0]
    expected = 0.1 * (small[0].weight.abs().sum() + small[2].weight.abs().sum())
    torch.testing.assert_close(difference, expected)
