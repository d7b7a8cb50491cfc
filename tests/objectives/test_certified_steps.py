"""Certified objectives as modules that are trained: gradients, randomness, shares of a batch, progress."""

import copy

import pytest
import torch
from torch import nn

from stalwart.core.random import generator, shard
from stalwart.core.registry import build
from stalwart.models.param_ramp import ParamRamp, initialise_ramps
from stalwart.objectives import OBJECTIVES, Moment, Trainee

EPS, CLASSES = 0.2, 3
BOUNDS = ["ibp", "crown-ibp", "crown-lbp"]
ATTACKED = ["sabr", "mtl-ibp", "cc-ibp", "exp-ibp", "taps", "staps"]


def make(name, **options):
    return build("objective", OBJECTIVES, name, {"eps": EPS} | options)


@pytest.mark.parametrize("name", [*BOUNDS, *ATTACKED])
def test_every_parameter_gets_a_gradient_and_the_moment_fixes_it(deep, images, name):
    found, state = [], copy.deepcopy(deep.state_dict())
    trainee = Trainee(deep, make(name)).train()
    for world_seed, seed in ((1, 0), (2, 0), (3, 1)):
        torch.manual_seed(world_seed)
        deep.load_state_dict(state)
        deep.zero_grad()
        loss, _ = trainee(*images, Moment(seed, 3))
        loss.backward()
        found.append((float(loss.detach()), [p.grad for p in deep.parameters()]))
        assert all(module.training for module in deep.modules())
        assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in found[-1][1])
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    assert (found[0][0] != found[2][0]) == (name in ATTACKED)


@pytest.mark.parametrize("name", ["crown-ibp", "sabr", "taps"])
def test_two_ranks_average_to_the_gradient_of_one_process(name):
    x, y = torch.rand(8, 4, generator=generator(0), dtype=torch.float64), torch.arange(8) % CLASSES
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 6), ParamRamp((6,)), nn.Linear(6, 6), ParamRamp((6,)), nn.Linear(6, CLASSES)
    ).double()
    initialise_ramps(net, [x])
    objective = make(name)

    def gradients(rows):
        net.zero_grad()
        Trainee(net, objective)(x[rows], y[rows], Moment(0, 3))[0].backward()
        return [p.grad for p in net.parameters()]

    whole, parts = gradients(slice(0, 8)), []
    for rank in range(2):
        with shard(rank, 2):
            parts.append(gradients(slice(4 * rank, 4 * rank + 4)))
    for one, left, right in zip(whole, *parts, strict=True):
        assert torch.allclose(one, (left + right) / 2, atol=1e-9)


@pytest.mark.parametrize("name", [*BOUNDS, *ATTACKED])
def test_a_few_steps_lower_the_loss_at_the_full_radius(name):
    x = torch.rand(32, 6, generator=generator(0))
    y = (x[:, :3].mean(1) > x[:, 3:].mean(1)).long()
    torch.manual_seed(0)
    trainee = Trainee(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)),
        make(name, eps=0.03, clean_epochs=0, ramp_epochs=0),
    )
    optimiser = torch.optim.Adam(trainee.parameters(), lr=0.03)
    losses = []
    for k in range(25):
        optimiser.zero_grad()
        loss, _ = trainee(x, y, Moment(k))
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
