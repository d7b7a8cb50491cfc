"""Adversarial weight perturbation: the size of the step, the gradient at w + v, and nothing else moved."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stalwart.core.registry import build
from stalwart.objectives import OBJECTIVES, Moment
from stalwart.stochastic import WCAHead, noise

GAMMA = 0.05


def awp(base="pgd-at", gamma=GAMMA, warmup=0, **options):
    options = options or {"eps": 0.1, "steps": 2}
    return build("objective", OBJECTIVES, "awp", {"base": base, "gamma": gamma, "warmup": warmup, "options": options})


@pytest.fixture
def steady(net):
    """Return the net without dropout, whose masks an independent computation could not repeat."""
    net[3].p = 0.0
    return net.double().train()


def base_loss(base, net, x, x_adv, y):
    if base == "pgd-at":
        return F.cross_entropy(net(x_adv), y)
    clean, adversarial = net(x), net(x_adv)
    divergence = F.kl_div(adversarial.log_softmax(1), clean.log_softmax(1), log_target=True, reduction="batchmean")
    return F.cross_entropy(clean, y) + 6.0 * divergence


def perturbed_by_hand(base, net, x, x_adv, y):
    """Return a copy of the net at w + v, by plain autograd on another copy."""
    probe = copy.deepcopy(net)
    base_loss(base, probe, x, x_adv, y).backward()
    moved = copy.deepcopy(net)
    with torch.no_grad():
        for target, source in zip(moved.parameters(), probe.parameters(), strict=True):
            if target.dim() > 1:
                target += GAMMA * source.norm() / source.grad.norm() * source.grad
    return moved


@pytest.mark.parametrize("base", ["pgd-at", "trades"])
def test_the_perturbation_has_its_size_and_only_weights_move(steady, batch, base):
    x, y = batch[0].double(), batch[1]
    objective = awp(base)
    x_adv = objective.craft(steady, x, y, Moment(0))
    weights = {name: p for name, p in steady.named_parameters() if p.dim() > 1}
    moved = objective.perturb(steady, weights, x, x_adv, y)
    assert set(moved) == {"0.weight", "5.weight", "7.weight"}, "no bias, no batch norm"
    for name, weight in weights.items():
        v = (moved[name] - weight).detach()
        assert float(v.norm()) == pytest.approx(GAMMA * float(weight.detach().norm()), rel=1e-9)
    before, at = (base_loss(base, net, x, x_adv, y) for net in (steady, perturbed_by_hand(base, steady, x, x_adv, y)))
    assert at > before, "it must climb"


@pytest.mark.parametrize("base", ["pgd-at", "trades"])
def test_loss_and_gradient_are_those_at_w_plus_v(steady, batch, base):
    x, y = batch[0].double(), batch[1]
    objective = awp(base)
    before = {key: tensor.clone() for key, tensor in steady.state_dict().items()}
    twin = copy.deepcopy(steady)
    x_adv = objective.craft(twin, x, y, Moment(0))
    moved = perturbed_by_hand(base, twin, x, x_adv, y)
    expected = base_loss(base, moved, x, x_adv, y)
    expected.backward()
    loss, _ = objective.loss(steady, x, y, Moment(0))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-9)
    for (name, p), q in zip(steady.named_parameters(), moved.parameters(), strict=True):
        assert torch.equal(p.detach(), before[name]), "weights are as they were, to the bit"
        assert torch.allclose(p.grad, q.grad, atol=1e-9), name
    # Batch norm saw the batch as often as in the base loss, not once more for the perturbation.
    once = copy.deepcopy(twin)
    base_loss(base, once, x, x_adv, y)
    assert int(steady[1].num_batches_tracked) == int(once[1].num_batches_tracked)


def test_batch_norm_statistics_do_not_see_the_search_for_v(steady, batch):
    x, y = batch[0].double(), batch[1]
    objective = awp()
    before = [tensor.clone() for tensor in steady.buffers()]
    weights = {name: p for name, p in steady.named_parameters() if p.dim() > 1}
    objective.perturb(steady, weights, x, objective.craft(steady, x, y, Moment(0)), y)
    assert all(torch.equal(a, b) for a, b in zip(before, steady.buffers(), strict=True))
    assert all(p.grad is None for p in steady.parameters())


def test_warmup_is_the_base_alone(steady, batch):
    x, y = batch[0].double(), batch[1]
    base = build("objective", OBJECTIVES, "pgd-at", {"eps": 0.1, "steps": 2})
    objective = awp(warmup=2)
    plain, early, late = (
        one.loss(copy.deepcopy(steady), x, y, Moment(0, epoch))[0]
        for one, epoch in ((base, 0), (objective, 1), (objective, 2))
    )
    assert torch.equal(plain, early)
    assert late > early


def test_frozen_and_idle_weights_stay(batch):
    x, y = batch
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.Linear(6, 6), WCAHead(6, 3))
    model[1].weight.requires_grad_(False)
    objective = awp()
    with noise(model, "off"):  # the covariance has no influence on the loss then
        loss, _ = objective.loss(model, x, y, Moment(0))
        loss.backward()
        weights = {name: p for name, p in model.named_parameters() if p.dim() > 1 and p.requires_grad}
        assert set(objective.perturb(model, weights, x, x, y)) == {"2.weight", "3.linear.weight"}
    assert model[1].weight.grad is None
    assert model[2].weight.grad.abs().max() > 0


def test_a_loss_without_slope_perturbs_nothing(batch):
    x, y = batch
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].bias.fill_(-100.0)  # no unit is ever active
    weights = {"1.weight": model[1].weight}
    moved = awp().perturb(model, weights, x, x, y)
    assert torch.equal(moved["1.weight"], model[1].weight)


def test_a_wrapped_wca_keeps_its_penalty(batch):
    x, y = batch
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), WCAHead(6, 3))
    alone, twice = (
        build("objective", OBJECTIVES, "awp", {"base": "wca", "options": {"weight": weight}}) for weight in (1.0, 2.0)
    )
    with noise(model, "off"):
        difference = alone.loss(model, x, y, Moment(0))[0] - twice.loss(model, x, y, Moment(0))[0]
    assert torch.allclose(difference, model[2].alignment(), atol=1e-4)
