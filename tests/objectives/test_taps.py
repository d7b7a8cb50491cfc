"""TAPS: where the network is cut, the attack between the halves, and the gradient that connects them."""

import pytest
import torch
from torch import nn

from stalwart.core.errors import UsageError
from stalwart.core.random import generator
from stalwart.core.registry import build
from stalwart.models import build_model
from stalwart.models.param_ramp import ParamRamp
from stalwart.objectives import OBJECTIVES, Moment
from stalwart.objectives.bounds_adapter import CleanPass
from stalwart.objectives.certified import margin_loss, margins_of
from stalwart.objectives.taps import connect, expand_gradient, halves

FULL = Moment(0, 5)


def make(name="taps", **options):
    return build("objective", OBJECTIVES, name, {"eps": 0.1} | options)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), ParamRamp((5,), 0.1), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)
    ).double()


@pytest.fixture
def batch():
    return torch.rand(4, 4, generator=generator(0), dtype=torch.float64), torch.tensor([0, 1, 2, 0])


def test_where_the_network_is_cut(net):
    x = torch.rand(2, 4, generator=generator(0), dtype=torch.float64)
    for activations, layers in ((1, 4), (2, 2)):
        first, second = halves(net, activations)
        assert (len(first), len(second)) == (layers, 7 - layers)
        assert torch.equal(second(first(x)), net(x))
        assert halves(net, activations)[0] is first, "traced once, so made once"
    model = build_model("cnn7-bn", (1, 8, 8), 10)
    first, second = halves(model, 1)
    assert [type(layer) for layer in second] == [nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    with pytest.raises(UsageError, match="3 activations behind the split, but the model has 3"):
        halves(net, 3)
    with pytest.raises(UsageError, match="chain of layers, which ResNet"):
        halves(type("ResNet", (nn.Module,), {})(), 1)


def test_the_connector():
    lower, upper = torch.zeros(1, 6), torch.tensor([[1.0, 1.0, 1.0, 1.0, 2.0, 0.0]])
    lower.requires_grad_(), upper.requires_grad_()
    z = torch.tensor([[0.0, 0.25, 0.5, 1.0, 1.5, 0.0]])
    out = connect(lower, upper, z, 0.5)
    assert torch.equal(out, z)
    out.backward(torch.tensor([[1.0, 1.0, 1.0, 1.0, 3.0, 1.0]]))
    assert lower.grad.tolist() == [[1.0, 0.5, 0.0, 0.0, 0.0, 0.5]]
    assert upper.grad.tolist() == [[0.0, 0.0, 0.0, 1.0, 1.5, 0.5]]
    sharp = torch.zeros(1, 1, requires_grad=True)
    connect(sharp, torch.ones(1, 1), torch.tensor([[0.1]]), 0.25).sum().backward()
    assert float(sharp.grad) == pytest.approx(0.6)


def test_gradient_expansion():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    out = expand_gradient(x, 5.0)
    assert torch.equal(out, x)
    out.sum().backward()
    assert x.grad.tolist() == [5.0, 5.0]


def test_the_latent_attack_climbs_each_margin_inside_its_interval(net, batch):
    _, y = batch
    lower = torch.rand(4, 5, generator=generator(1), dtype=torch.float64)
    upper = lower + 2 * torch.rand(4, 5, generator=generator(2), dtype=torch.float64)
    lower[0, 0] = upper[0, 0]
    # Behind a linear layer the worst point is a corner.
    z = make().latent_attack(net[6], lower, upper, y, FULL).unflatten(0, (2, 4))
    for j in range(2):
        for b in range(4):
            other = [k for k in range(3) if k != y[b]][j]
            climbing = net[6].weight[other] > net[6].weight[y[b]]
            torch.testing.assert_close(z[j, b], torch.where(climbing, upper[b], lower[b]))
    _, second = halves(net, 1)
    z = make().latent_attack(second, lower, upper, y, FULL).unflatten(0, (2, 4))
    assert (z >= lower).all()
    assert (z <= upper).all()
    middle = margins_of(second((lower + upper) / 2), y)
    assert all((margins_of(second(z[j]), y)[:, j] <= middle[:, j] + 1e-9).all() for j in range(2))


@pytest.mark.parametrize("name", ["taps", "staps"])
def test_the_loss_by_hand(net, batch, name):
    x, y = batch
    objective = make(name, split=2, latent_steps=5)
    lower, upper = objective.region(net, x, y, 0.1, FULL)
    w, b = net[0].weight, net[0].bias
    middle, radius = (lower + upper) / 2 @ w.T + b, (upper - lower) / 2 @ w.abs().T
    latent = (middle - radius).clamp_min(0), (middle + radius).clamp_min(0)
    _, second = halves(net, 2)
    z = objective.latent_attack(second, *(one.detach() for one in latent), y, FULL).unflatten(0, (2, 4))
    attacked = torch.stack([margins_of(second(z[j]), y)[:, j] for j in range(2)], 1)
    bounds = CleanPass(net, x).box(lower, upper).margins(y)
    expected = (margin_loss(attacked) * margin_loss(bounds)).mean()
    loss, logits = objective.loss(net, x, y, FULL)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, net(x))
    assert (attacked >= bounds - 1e-9).all(), "an attack never beats the bound"


def test_the_expansion_changes_the_gradient_alone(net, batch):
    losses, gradients = [], []
    for expansion in (1.0, 5.0):
        loss, _ = make(expansion=expansion).loss(net, *batch, FULL)
        losses.append(float(loss.detach()))
        gradients.append(torch.autograd.grad(loss, net[6].weight)[0])
    assert losses[0] == losses[1]
    assert not torch.allclose(gradients[0], gradients[1])
