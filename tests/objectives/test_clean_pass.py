"""The clean pass of certified training, and boxes and points normalised by its batch."""

import copy

import pytest
import torch
from torch import nn

from stalwart.core.random import generator
from stalwart.core.registry import build
from stalwart.models.param_ramp import ParamRamp, initialise_ramps
from stalwart.objectives import OBJECTIVES, Moment, Trainee
from stalwart.objectives.bounds_adapter import CleanPass

EPS, CLASSES = 0.2, 3
FULL = Moment(0, 5)


def make(name, **options):
    return build("objective", OBJECTIVES, name, {"eps": EPS} | options)


@pytest.mark.parametrize("training", [False, True])
def test_a_box_that_is_a_point_is_the_clean_pass(deep, images, training):
    x, _ = images
    deep.double().train(training)
    x = x.double()
    if not training:
        deep[1].running_mean.uniform_(-1, 1), deep[5].running_var.uniform_(0.5, 2)
    reference = copy.deepcopy(deep)
    clean = CleanPass(deep, x)
    expected = reference(x)
    for output in (clean.logits, clean.box(x, x).output.lower, clean.box(x, x).output.upper, clean.at(x)):
        torch.testing.assert_close(output, expected)
    assert all(torch.equal(a, b) for a, b in zip(deep.buffers(), reference.buffers(), strict=True)), (
        "statistics move once"
    )
    weight = torch.rand(expected.shape, generator=generator(1), dtype=x.dtype)
    mine = torch.autograd.grad((clean.at(x) * weight).sum(), list(deep.parameters()))
    theirs = torch.autograd.grad((expected * weight).sum(), list(reference.parameters()))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_a_point_beside_the_batch_is_normalised_like_it(deep, images):
    x, _ = images
    deep.train()
    clean = CleanPass(deep, x)
    torch.testing.assert_close(clean.at(x[:2]), clean.logits[:2], rtol=1e-4, atol=1e-5)
    box = clean.box(x - 0.1, x + 0.1)
    with torch.no_grad():
        z = x + 0.1 * torch.rand(x.shape, generator=generator(0))
        out = clean.at(z)
        assert (out >= box.output.lower - 1e-5).all()
        assert (out <= box.output.upper + 1e-5).all()


def test_preactivations_are_in_order_and_contain_the_clean_ones(deep, images):
    x, _ = images
    seen = []
    for layer in deep:
        if isinstance(layer, nn.ReLU):
            layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    clean = CleanPass(deep.train(), x)
    found = clean.box(x - 0.05, x + 0.05).preactivations
    assert [path for path, _ in found] == ["2", "6"]
    for (_, interval), inside in zip(found, seen[:2], strict=True):
        assert (interval.lower <= inside + 1e-5).all()
        assert (inside <= interval.upper + 1e-5).all()


def test_bounds_see_the_noise_of_the_step():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), ParamRamp((6,), noise=0.5), nn.Linear(6, CLASSES))
    x = 5 * torch.rand(5, 4, generator=generator(0))
    initialise_ramps(net, [x])

    class Look(type(make("ibp"))):
        def step(self, model, x, y, eps, moment):
            clean = CleanPass(model, x)
            torch.testing.assert_close(clean.box(x, x).output.lower, clean.logits)
            assert not torch.allclose(clean.logits, plain, atol=1e-3)
            return super().step(model, x, y, eps, moment)

    plain = net(x)
    loss, _ = Trainee(net, Look(eps=0.1))(x, torch.arange(5) % 3, FULL)
    loss.backward()
    assert net[1].r.grad.abs().max() > 0
    torch.testing.assert_close(CleanPass(net, x).box(x, x).output.lower, plain)
