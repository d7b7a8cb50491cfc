"""Entropy-SGD and adversarial block coordinate descent: quadratics and linear models by hand, and what the loop does."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from stalwart.core.errors import UsageError
from stalwart.core.random import generator
from stalwart.core.registry import build
from stalwart.objectives import OBJECTIVES, Moment, Trainee


def objective(name, **options):
    return build("objective", OBJECTIVES, name, options)


def params_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gradient_at(model, moved, x, y):
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in moved.items()}
    loss = F.cross_entropy(functional_call(model, leaves, (x,)), y)
    loss.backward()
    return float(loss.detach()), {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize(("rate", "gamma", "average", "steps"), [(0.1, 0.5, 0.75, 10), (0.3, 2.0, 0.0, 4)])
def test_the_walk_on_a_quadratic_is_a_recurrence_of_one_number(rate, gamma, average, steps):
    # f(w) = c w² / 2 without noise: w' <- w' (1 - rate (c + gamma)) + rate gamma w.
    curvature, start = 3.0, 2.0
    at = mean = start
    for _ in range(steps):
        at = at - rate * (curvature * at - gamma * (start - at))
        mean = average * mean + (1 - average) * at
    one = objective("entropy-sgd", rate=rate, gamma=gamma, average=average, steps=steps, noise=0)
    weights = {"w": torch.full((2,), start, dtype=torch.float64)}
    found = one.walk(weights, lambda moved: {"w": curvature * moved["w"]}, generator(0))
    torch.testing.assert_close(found["w"], torch.full((2,), mean, dtype=torch.float64))
    # Far enough, the walk comes to rest where the pulls balance, w gamma / (c + gamma).
    far = objective("entropy-sgd", rate=0.1, gamma=gamma, steps=400, noise=0)
    rest = far.walk(weights, lambda moved: {"w": curvature * moved["w"]}, generator(0))
    torch.testing.assert_close(rest["w"], weights["w"] * gamma / (curvature + gamma))


def test_the_noise_of_the_walk_has_its_size():
    one = objective("entropy-sgd", steps=1, rate=0.25, noise=0.2, average=0)
    weights = {"w": torch.zeros(20_000, dtype=torch.float64)}
    still = {"w": torch.zeros(20_000, dtype=torch.float64)}
    found = one.walk(weights, lambda moved: still, generator(0))["w"]
    assert float(found.std()) == pytest.approx(0.5 * 0.2, rel=0.02)


def test_entropy_sgd_by_hand(small, points):
    x, y = points
    params = params_of(small)
    source = Moment(7).generator(x, "entropy-sgd")
    at = mean = params
    for _ in range(3):
        _, slopes = gradient_at(small, at, x, y)
        at = {
            name: p - 0.2 * (slopes[name] - 0.5 * (params[name] - p))
            + 0.2**0.5 * 0.01 * torch.randn(p.shape, generator=source, dtype=p.dtype)
            for name, p in at.items()
        }  # fmt: skip
        mean = {name: 0.6 * mean[name] + 0.4 * at[name] for name in at}
    one = objective("entropy-sgd", steps=3, rate=0.2, gamma=0.5, noise=0.01, average=0.6)
    loss, logits = one.loss(small, x, y, Moment(7))
    loss.backward()
    assert float(loss.detach()) == float(F.cross_entropy(small(x), y).detach()), "the value is that of the base"
    torch.testing.assert_close(logits, small(x))
    for name, p in small.named_parameters():
        torch.testing.assert_close(p.grad, 0.5 * (params[name] - mean[name]), rtol=1e-9, atol=1e-12)
        assert torch.equal(p.detach(), params[name]), "weights are as they were, to the bit"


def step(model, one, x, y, seed=5, rate=0.1):
    """Run all updates of one batch as the training loop does, by plain descent."""
    optimiser, moment = torch.optim.SGD(model.parameters(), rate), Moment(seed)
    for part in range(one.updates):
        now = Moment(seed, part=part, kept=moment.kept)
        optimiser.zero_grad()
        Trainee(model, one)(x, y, now)[0].backward()
        optimiser.step()
        one.after_step(model, now)


@pytest.mark.parametrize("updates", [1, 3])
def test_some_weights_climb_and_the_others_descend_from_there(updates):
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    x = torch.rand(6, 4, generator=generator(0), dtype=torch.float64)
    y = torch.arange(6) % 3
    expected = params_of(model)
    for part in range(updates):
        source = Moment(5).generator(x, "abcd", part)
        _, slopes = gradient_at(model, expected, x, y)
        climbs = {n: torch.rand(p.shape, generator=source, dtype=p.dtype) < 0.3 for n, p in expected.items()}
        assert 0 < sum(int(mask.sum()) for mask in climbs.values()) < 15
        there = {n: p + 0.02 * (climbs[n] * slopes[n]) for n, p in expected.items()}
        _, slopes = gradient_at(model, there, x, y)
        expected = {n: p - 0.1 * (~climbs[n] * slopes[n]) for n, p in there.items()}
    one = objective("abcd", climb=0.02, share=0.3, steps=updates)
    step(model, one, x, y)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-14)


def test_without_a_climb_it_is_descent_of_some(small, points):
    x, y = points
    twin = copy.deepcopy(small)
    step(small, objective("abcd", climb=0, share=0), x, y)
    step(twin, objective("natural"), x, y)
    for p, q in zip(small.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", ["abcd", "entropy-sgd"])
def test_batch_norm_sees_one_pass_and_all_parameters_train(net, batch, name):
    model = copy.deepcopy(net).train()
    before = params_of(model)
    loss, _ = objective(name, steps=2).loss(model, *batch, Moment(0))
    loss.backward()
    assert int(model[1].num_batches_tracked) == int(net[1].num_batches_tracked) + 1
    assert all(p.grad is not None for p in model.parameters())
    assert max(float(p.grad.abs().max()) for p in model[1].parameters()) > 0
    assert all(torch.equal(p.detach(), before[key]) for key, p in model.named_parameters())


@pytest.mark.parametrize("name", ["abcd", "entropy-sgd"])
def test_frozen_parameters_stay_and_a_base_crafts(small, points, name):
    x, y = points
    small[0].weight.requires_grad_(False)
    before = small[0].weight.clone()
    one = objective(name, base="pgd-at", options={"eps": 0.1, "steps": 2})
    seen = []
    small.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    step(small, one, x, y)
    assert torch.equal(small[0].weight, before)
    assert small[0].weight.grad is None
    torch.testing.assert_close(seen[-1], one.craft(small, x, y, Moment(5)), atol=0.11, rtol=0)
    assert float((seen[-1] - x).abs().max()) == pytest.approx(0.1), "the last pass is on crafted inputs"


@pytest.mark.parametrize(("name", "options"), [("abcd", {}), ("entropy-sgd", {"gamma": 1.0, "rate": 0.5})])
def test_it_learns(name, options):
    x = torch.rand(200, 16, generator=generator(0))
    y = (x[:, :4].sum(1) > x[:, 4:8].sum(1)).long()
    torch.manual_seed(0)
    model, one = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2)), objective(name, **options)
    trainee, optimiser = Trainee(model, one), torch.optim.Adam(model.parameters(), 0.01)
    for number in range(100):
        moment = Moment(number)
        optimiser.zero_grad()
        trainee(x, y, moment)[0].backward()
        optimiser.step()
        one.after_step(model, moment)
    assert float((model(x).argmax(1) == y).double().mean()) > 0.9


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("entropy-sgd", {"steps": 0}, "steps"),
        ("entropy-sgd", {"rate": 0}, "rate"),
        ("entropy-sgd", {"gamma": 0}, "gamma"),
        ("entropy-sgd", {"noise": -1}, "noise"),
        ("entropy-sgd", {"average": 1}, "average"),
        ("abcd", {"steps": 0}, "steps"),
        ("abcd", {"climb": -1}, "climb"),
        ("abcd", {"share": 1}, "nothing would descend"),
        ("abcd", {"base": "entropy-sgd"}, "cannot stand inside another"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(UsageError, match=message):
        objective(name, **options)
