"""Inputs made for training: inside the set, better than where they began, and no trace on the model."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import stalwart as sw
from stalwart.core.random import generator
from stalwart.core.registry import build
from stalwart.objectives import OBJECTIVES, Moment
from stalwart.stochastic import WCAHead, noise

ADVERSARIAL = ["pgd-at", "trades", "mart", "fgsm-rs"]
WRAPPED = [("awp", {"base": "trades", "options": {"steps": 3}}), ("wca", {"base": "pgd-at", "options": {"steps": 3}})]
EVERY = [(name, {}) for name in ["natural", *ADVERSARIAL]] + WRAPPED


def make(name, **options):
    return build("objective", OBJECTIVES, name, options)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ADVERSARIAL)
@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(
    eps=st.sampled_from([0.0, 0.01, 8 / 255, 0.5, 3.0]),
    shape=st.sampled_from([(7,), (1, 5, 5), (3, 4, 4)]),
    seed=st.integers(0, 99),
)
def test_crafted_inputs_are_in_the_set(norm, name, eps, shape, seed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(int(torch.tensor(shape).prod()), 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.rand(4, *shape, generator=generator(seed)).clamp(0.1, 0.9).round(decimals=1)
    objective = make(name, eps=eps, norm=norm)
    x_adv = objective.craft(model, x, torch.arange(4) % 3, Moment(seed))
    assert x_adv.shape == x.shape
    assert (x_adv >= 0).all()
    assert (x_adv <= 1).all()
    change = (x_adv - x).double().flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert (size <= eps + 1e-6).all()
    assert size.max() >= 0.5 * min(eps, 0.1)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_crafting_leaves_no_trace(net, batch, name, options):
    x, y = batch
    net.train()
    net[1].eval()
    net[5].weight.requires_grad_(False)
    modes = [module.training for module in net.modules()]
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    torch.manual_seed(0)
    randomness = torch.get_rng_state()
    x_adv = make(name, **options).craft(net, x, y, Moment(0))
    assert all(p.grad is None for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()].count(False) == 1
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(state[key], tensor) for key, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), randomness)
    assert not x_adv.requires_grad
    assert x.grad is None
    assert not x.requires_grad
    assert torch.equal(x, batch[0])


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_crafting_sees_the_network_in_evaluation_mode(net, batch, name):
    x, y = batch
    seen = []
    net.register_forward_hook(lambda *_: seen.append([module.training for module in net.modules()]))
    found = []
    for training in (True, False):
        net.train(training)
        found.append(make(name).craft(net, x, y, Moment(0)))
    assert not any(any(modes) for modes in seen)
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_modes_are_restored_when_the_network_fails(net, batch, name):
    def stop(*_):
        raise RuntimeError("stop")

    net.train()
    net[7].register_forward_hook(stop)
    with pytest.raises(RuntimeError, match="stop"):
        make(name).craft(net, *batch, Moment(0))
    assert all(module.training for module in net.modules())


def test_pgd_at_is_the_textbook_loop(net, batch):
    """The last iterate of plain PGD, with no sample dropped, in float64 so that no rounding flips a sign."""
    x, y = batch[0].double(), batch[1]
    net.double().eval()
    eps, steps, step = 0.1, 5, 0.03
    found = make("pgd-at", eps=eps, steps=steps, step=step).craft(net, x, y, Moment(4))
    z = (x + eps * (2 * torch.rand(x.shape, generator=generator(4, "start"), dtype=x.dtype) - 1)).clamp(0, 1)
    for _ in range(steps):
        z.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(z), y), z)
        z = (z.detach() + step * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    assert torch.allclose(found, z, atol=1e-9)


def test_trades_climbs_the_divergence_from_the_clean_prediction(net, batch):
    x, y = batch[0].double(), batch[1]
    net.double().eval()
    with torch.no_grad():
        net[7].weight.mul_(20)  # so steep that KL(p || q) and KL(q || p) part ways
    eps, steps, step = 0.3, 6, 0.1
    found = make("trades", eps=eps, steps=steps, step=step).craft(net, x, y, Moment(4))
    with torch.no_grad():
        p = net(x).softmax(1)
    z = (x + 0.001 * torch.randn(x.shape, generator=generator(4, "start"), dtype=x.dtype)).clamp(0, 1)
    for _ in range(steps):
        z.requires_grad_()
        (gradient,) = torch.autograd.grad(F.kl_div(net(z).log_softmax(1), p, reduction="sum"), z)
        z = (z.detach() + step * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    assert torch.allclose(found, z, atol=1e-9)
    assert torch.equal(found, make("trades", eps=eps, steps=steps, step=step).craft(net, x, (y + 1) % 3, Moment(4)))


def test_mart_climbs_the_cross_entropy_from_beside_the_input(net, batch):
    x, y = batch[0].double(), batch[1]
    net.double().eval()
    found = make("mart", eps=0.1, steps=1, step=0.04).craft(net, x, y, Moment(4))
    z = (x + 0.001 * torch.randn(x.shape, generator=generator(4, "start"), dtype=x.dtype)).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(z), y), z)
    assert torch.allclose(found, (z.detach() + 0.04 * gradient.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1), atol=1e-9)


def test_fgsm_rs_takes_one_large_step(net, batch):
    x, y = batch[0].double(), batch[1]
    net.double().eval()
    found = make("fgsm-rs", eps=0.1).craft(net, x, y, Moment(4))
    z = (x + 0.1 * (2 * torch.rand(x.shape, generator=generator(4, "start"), dtype=x.dtype) - 1)).clamp(0, 1)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(z), y), z)
    assert torch.allclose(found, (z.detach() + 0.125 * gradient.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1), atol=1e-9)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_moments_fix_and_vary_the_start(net, batch, name):
    options = {} if name == "fgsm-rs" else {"step": 1e-3}  # many long steps end in the same corners from any start
    first, again, other = (make(name, **options).craft(net, *batch, Moment(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_more_draws_steady_the_inner_attack(batch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.Tanh(), WCAHead(6, 3))
    x, y = batch
    agreement = []
    for eot in (1, 32):
        crafted = []
        for seed in range(6):
            with noise(model, seed=seed):
                crafted.append(make("mart", eps=0.1, steps=1, eot=eot).craft(model, x, y, Moment(0)))
        agreement.append(torch.stack(crafted).std(0).mean())
    assert agreement[1] < 0.6 * agreement[0]


class Fooled(nn.Module):
    """A net that decides by the mean of its input: right above ``border`` for class 1."""

    def __init__(self, border):
        super().__init__()
        self.border = nn.Parameter(torch.tensor(border))

    def forward(self, x):
        score = x.flatten(1).mean(1) - self.border
        return torch.stack([-score, score], 1)


def test_the_watch_is_accuracy_under_pgd():
    x = torch.tensor([0.3, 0.45, 0.55, 0.7]).view(4, 1, 1, 1).expand(4, 1, 2, 2).clone()
    y = torch.tensor([0, 0, 1, 1])
    objective = make("fgsm-rs", eps=0.1)
    assert objective.watch(Fooled(0.5), x, y, Moment(0)) == 0.5
    assert make("fgsm-rs", eps=0.04).watch(Fooled(0.5), x, y, Moment(0)) == 1.0
    assert make("fgsm-rs", eps=0.3).watch(Fooled(0.5), x, y, Moment(0)) == 0.0
    attacked = sw.attack("pgd", steps=5)(Fooled(0.5), x, y, within=sw.Linf(0.1))
    assert float((~attacked.success).float().mean()) == 0.5


def test_a_collapse_is_visible_through_any_wrapper():
    for name in ("wca", "awp"):
        objective = make(name, base="fgsm-rs", options={"eps": 0.1, "fall": 0.15})
        x = torch.tensor([0.3, 0.7]).view(2, 1, 1, 1)
        before = objective.watch(Fooled(0.5), x, torch.tensor([0, 1]), Moment(0))
        after = objective.watch(Fooled(0.65), x, torch.tensor([0, 1]), Moment(0))
        assert before - after == 0.5
        assert before - after > objective.fall == 0.15
    assert getattr(make("awp", base="trades"), "watch", None) is None
