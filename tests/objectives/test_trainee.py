"""The module that is trained: its loss is a function of its weights, the batch and the moment alone."""

import copy

import pytest
import torch
from torch import nn

from stalwart.core.random import generator, shard
from stalwart.core.registry import build
from stalwart.objectives import OBJECTIVES, Moment, Trainee
from stalwart.stochastic import GaussianHead, WCAHead, inject, noise

SETTINGS = [
    ("natural", {}),
    ("pgd-at", {"steps": 2}),
    ("trades", {"steps": 2}),
    ("mart", {"steps": 2}),
    ("fgsm-rs", {}),
    ("awp", {"options": {"steps": 2}}),
    ("wca", {"base": "pgd-at", "options": {"steps": 2, "eot": 2}}),
    ("awp", {"base": "wca", "options": {"base": "trades", "options": {"steps": 2}}}),
    ("weight-kl", {"steps": 2, "forward_noise": 0.1}),
    ("forward-noise", {"base": "pgd-at", "options": {"steps": 2}}),
    ("amp", {"steps": 2}),
    ("sam", {"adaptive": True}),
]


def stochastic():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.4), WCAHead(8, 3))


def step(model, name, options, batch, moment):
    model = copy.deepcopy(model).train()
    loss, correct = Trainee(model, build("objective", OBJECTIVES, name, options))(*batch, moment)
    loss.backward()
    return loss.detach(), correct, [p.grad for p in model.parameters()]


@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_the_moment_fixes_everything(batch, name, options):
    model = stochastic()
    results = []
    for world_seed, seed in ((1, 0), (2, 0), (3, 1)):
        torch.manual_seed(world_seed)
        model(batch[0])  # moves the noise layers' own streams
        model.load_state_dict(stochastic().state_dict())
        results.append(step(model, name, options, batch, Moment(seed)))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][2], results[1][2], strict=True))
    assert not torch.equal(results[0][0], results[2][0])


@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_randomness_modes_and_streams_are_left_alone(batch, name, options):
    model = stochastic().train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with noise(model, seed=0):
        Trainee(model, build("objective", OBJECTIVES, name, options))(*batch, Moment(3))
        torch.set_rng_state(state)
        after = model[5](torch.ones(2, 8))
    with noise(model, seed=0):
        assert torch.equal(model[5](torch.ones(2, 8)), after)
    Trainee(model, build("objective", OBJECTIVES, name, options))(*batch, Moment(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert model[5].mode == "on"


@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_every_parameter_that_matters_gets_a_gradient(batch, name, options):
    _, _, gradients = step(stochastic(), name, options, batch, Moment(0))
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert sum(float(gradient.abs().sum()) > 0 for gradient in gradients) >= len(gradients) - 1


def test_correct_counts_the_training_predictions(batch):
    x, y = batch
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    loss, correct = Trainee(model, build("objective", OBJECTIVES, "natural", {}))(x, y, Moment(0))
    assert int(correct) == sum(int(p) == int(t) for p, t in zip(model(x).argmax(1), y, strict=True))
    assert loss.shape == correct.shape == ()
    assert not correct.requires_grad


def test_noise_that_is_off_stays_off(batch):
    model = stochastic().eval()
    objective = build("objective", OBJECTIVES, "natural", {})
    with noise(model, "off"):
        first, second = (Trainee(model, objective)(*batch, Moment(seed))[0] for seed in (0, 1))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["natural", "pgd-at", "trades", "mart", "fgsm-rs"])
@pytest.mark.parametrize("head", [GaussianHead, "pni"])
def test_two_ranks_average_to_the_gradient_of_one_process(batch, name, head):
    x, y = batch[0].double(), batch[1]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3) if head == "pni" else head(8, 3))
    model = (inject(model) if head == "pni" else model).double()
    options = {} if name in ("natural", "fgsm-rs") else {"steps": 2}
    _, correct, whole = step(model, name, options, (x, y), Moment(0))
    parts = []
    for rank in range(2):
        rows = slice(4 * rank, 4 * rank + 4)
        with shard(rank, 2):
            parts.append(step(model, name, options, (x[rows], y[rows]), Moment(0)))
    assert int(correct) == sum(int(part[1]) for part in parts)
    for one, left, right in zip(whole, parts[0][2], parts[1][2], strict=True):
        assert torch.allclose(one, (left + right) / 2, atol=1e-9)


def test_a_few_steps_of_each_objective_lower_the_loss():
    x = torch.rand(24, 1, 6, 6, generator=generator(0))
    y = (x.flatten(1)[:, :12].mean(1) > x.flatten(1)[:, 12:24].mean(1)).long()
    for name, options in (
        ("natural", {}),
        ("pgd-at", {"eps": 0.01, "steps": 2}),
        ("trades", {"eps": 0.01, "steps": 2}),
    ):
        torch.manual_seed(0)
        trainee = Trainee(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), build("objective", OBJECTIVES, name, options))
        optimiser = torch.optim.Adam(trainee.parameters(), lr=0.05)
        losses = []
        for k in range(40):
            optimiser.zero_grad()
            loss, _ = trainee(x, y, Moment(k))
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.7 * losses[0]
