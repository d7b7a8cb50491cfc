"""SNN-RAT: what the step after a step does to weights, which inputs are trained on, and which are refused."""

import copy

import pytest
import torch
from torch import nn

from stalwart.core.errors import UsageError
from stalwart.core.random import generator
from stalwart.core.registry import build
from stalwart.models import build_model
from stalwart.models.spiking import Spiking
from stalwart.objectives import OBJECTIVES, Moment
from stalwart.objectives.rat import RAT, orthonormalise
from stalwart.spiking import gradients

IMAGES = torch.rand(6, 1, 12, 12, generator=generator(1))
LABELS = torch.arange(6) % 4


@pytest.fixture
def spiking():
    return build_model("small-cnn", (1, 12, 12), 4, spiking=Spiking(steps=4)).eval()


def test_singular_values_are_drawn_to_one():
    w = torch.randn(6, 2, 5, generator=generator(0), dtype=torch.float64)
    before = torch.linalg.svdvals(w.flatten(1))
    after = torch.linalg.svdvals(orthonormalise(w, 0.01).flatten(1))
    assert torch.allclose(after, before + 0.01 * before * (1 - before**2), atol=1e-12)
    orthonormal = torch.linalg.qr(torch.randn(8, 3, generator=generator(1), dtype=torch.float64))[0].T
    assert torch.allclose(orthonormalise(orthonormal, 0.3), orthonormal, atol=1e-12)
    # By hand: W = (2, 0), W W^T W = 8 W / 2.
    assert torch.allclose(orthonormalise(torch.tensor([[2.0, 0.0]]), 0.1), torch.tensor([[1.4, 0.0]]))


def test_it_descends_the_distance_to_orthonormality():
    w = torch.randn(3, 4, generator=generator(2), dtype=torch.float64, requires_grad=True)
    ((w @ w.T - torch.eye(3, dtype=torch.float64)).square().sum() / 4).backward()
    assert torch.allclose(orthonormalise(w.detach(), 0.05), w.detach() - 0.05 * w.grad, atol=1e-12)


def test_small_matrices_move_whole_and_large_ones_by_some_rows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 300))
    before = copy.deepcopy(model)
    RAT(beta=0.01).after_step(model, Moment(5))
    assert torch.allclose(model[0].weight, orthonormalise(before[0].weight, 0.01))
    assert torch.equal(model[1].weight, before[1].weight)
    assert torch.equal(model[3].bias, before[3].bias)
    moved = (model[3].weight != before[3].weight).any(1)
    assert int(moved.sum()) == 90
    assert torch.allclose(model[3].weight[moved], orthonormalise(before[3].weight[moved], 0.01), atol=1e-6)
    again, other = copy.deepcopy(before), copy.deepcopy(before)
    RAT(beta=0.01).after_step(again, Moment(5))
    RAT(beta=0.01).after_step(other, Moment(6))
    assert torch.equal(again[3].weight, model[3].weight)
    assert not torch.equal(other[3].weight, model[3].weight)
    still = copy.deepcopy(before)
    RAT(beta=0.0).after_step(still, Moment(5))
    assert all(torch.equal(a, b) for a, b in zip(still.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("backward", ["bptt", "bptr"])
def test_one_step_is_fgsm_with_the_chosen_gradient(spiking, backward):
    x = IMAGES.clone().requires_grad_()
    with gradients(spiking, backward=backward):
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(spiking(x), LABELS), x)
    expected = (IMAGES + 0.02 * g.sign()).clamp(0, 1)
    found = RAT(eps=0.02, backward=backward).craft(spiking, IMAGES, LABELS, Moment(0))
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.equal(found, IMAGES)


def test_more_steps_start_at_random_and_stay_within(spiking):
    objective = RAT(eps=8 / 255, steps=2, step=1 / 255)
    one, same, other = (objective.craft(spiking, IMAGES, LABELS, Moment(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert float((one - IMAGES).abs().max()) <= 8 / 255 + 1e-6


def test_a_model_without_neurons_has_one_gradient_only(net, batch):
    x, y = batch
    assert RAT().craft(net, x, y, Moment(0)).shape == x.shape
    RAT().penalty(net)
    with pytest.raises(UsageError, match="give the model a spiking section"):
        RAT(backward="bptr").penalty(net)


def test_it_stands_inside_others_with_its_step():
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    inside = build("objective", OBJECTIVES, "awp", {"base": "rat", "options": {"beta": 0.01}})
    expected = orthonormalise(model.weight.detach().clone(), 0.01)
    inside.after_step(model, Moment(0))
    assert torch.allclose(model.weight, expected)


@pytest.mark.parametrize(
    ("options", "what"), [({"beta": -1.0}, "beta must be at least 0"), ({"backward": "magic"}, "unknown backward mode")]
)
def test_impossible_options_are_refused(options, what):
    with pytest.raises(UsageError, match=what):
        RAT(**options)
