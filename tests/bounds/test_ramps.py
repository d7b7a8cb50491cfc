"""Intervals kept as centre and reach, and the compiled passes of ReLU, leaky ReLU and ParamRamp over them."""

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.bounds import bound, ramps
from stalwart.bounds.interval import Interval
from stalwart.bounds.rules import elementwise
from stalwart.core import jit
from stalwart.core.random import generator
from stalwart.models.param_ramp import ParamRamp
from stalwart.models.param_ramp import ramps as ramps_of

needs_numba = pytest.mark.skipif(not jit.available(), reason="numba is not installed")


def random(*shape, seed):
    return torch.randn(*shape, generator=generator(seed))


def plain(lower, upper, length, eta):
    def value(z):
        kept = z.clamp_min(0) if length is None else torch.minimum(z.clamp_min(0), length)
        return kept + eta * (z - kept)

    return value(lower), value(upper)


@needs_numba
@pytest.mark.parametrize(
    ("shape", "order"),
    [((5, 7), torch.contiguous_format), ((4, 3, 5, 6), torch.contiguous_format), ((4, 3, 5, 6), torch.channels_last)],
)
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.1])
def test_one_pass_equals_plain_operators_and_their_gradients(shape, order, bounded, eta):
    centre = random(*shape, seed=0).contiguous(memory_format=order).requires_grad_()
    # The reach lies in memory as it likes.
    reach = random(*shape, seed=1).abs().requires_grad_()
    length = (random(1, *shape[1:], seed=2).abs() + 0.1).requires_grad_() if bounded else None
    weights = random(2, *shape, seed=3)
    found = ramps.ramped(Interval.around(centre, reach), length, eta)
    assert found.is_around
    low, high = plain(centre - reach, centre + reach, length, eta)
    for one, other in ((found.lower, low), (found.upper, high)):
        torch.testing.assert_close(one, other)
    wanted = [one for one in (centre, reach, length) if one is not None]
    fast = torch.autograd.grad((found.centre * weights[0] + found.reach * weights[1]).sum(), wanted)
    slow = torch.autograd.grad((((low + high) * weights[0] + (high - low) * weights[1]) / 2).sum(), wanted)
    for one, other in zip(fast, slow, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@needs_numba
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.1), "ramp"])
def test_bounds_and_gradients_of_a_network_do_not_depend_on_the_loops(activation, monkeypatch):
    torch.manual_seed(0)
    layer = ParamRamp((4, 4, 4), 0.05) if activation == "ramp" else activation
    model = nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.Flatten(), nn.Linear(64, 3)).eval()
    for one in ramps_of(model).values():
        one.on.fill_(True)
        one.r.data.uniform_(0.1, 0.5)
    x = torch.rand(3, 1, 6, 6, generator=generator(1))
    calls = []
    original = ramps.ramped
    monkeypatch.setattr(elementwise.ramps, "ramped", lambda *all_: calls.append(1) or original(*all_))

    def run():
        found = bound(model, x, sw.Linf(0.2))
        return found.lower, found.upper, *torch.autograd.grad((found.upper - found.lower).sum(), [*model.parameters()])

    fast = run()
    assert calls
    monkeypatch.setattr(jit, "available", lambda: False)
    calls.clear()
    for one, other in zip(fast, run(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert not calls


@needs_numba
def test_nan_proves_nothing():
    x = Interval.around(torch.tensor([[float("nan"), 1.0]]), torch.tensor([[1.0, float("nan")]]))
    found = ramps.ramped(x, torch.tensor([[1.0, 1.0]]), 0.0)
    assert found.centre.isnan().all()
    assert found.reach.isnan().all()


def test_halves_are_kept_without_gradients_only():
    ends = Interval(torch.zeros(2), torch.ones(2))
    assert ends.centre is ends.centre
    assert not ends.is_around
    leaf = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        around = Interval.around(leaf * 1, leaf * 2)
        assert around.lower is around.lower
    traced = Interval.around(leaf * leaf, leaf)
    with torch.no_grad():
        assert not traced.lower.requires_grad
    assert traced.lower.requires_grad, "what was computed without gradients must not stay"
    traced.lower.sum().backward(retain_graph=True)
    traced.upper.sum().backward()
