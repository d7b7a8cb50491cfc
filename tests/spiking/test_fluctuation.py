"""Fluctuation-driven initialisation: the membranes' spread is the one asked for, in theory, in trains and in networks."""

import math

import pytest
import torch
from torch import nn

from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.spiking import LIF, Direct, InTime, Poisson, SpikingNetwork, fluctuation_init, weight_statistics


def membranes(currents, leak):
    """Return membranes [T, ...] without a reset."""
    u, out = torch.zeros_like(currents[0]), []
    for current in currents:
        u = leak * u + current
        out.append(u)
    return torch.stack(out)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1])
@pytest.mark.parametrize(("xi", "mean", "leak"), [(1.0, 0.0, 0.9), (3.0, 0.0, 0.9), (2.0, 0.0, 0.5), (2.0, 0.2, 0.9)])
def test_membranes_without_reset_spread_as_asked(rate, xi, mean, leak):
    centre, deviation = weight_statistics(400, rate, leak, xi=xi, mean=mean)
    source = generator(0)
    weights = centre + deviation * torch.randn(200, 400, generator=source)
    spikes = (torch.rand(1500, 400, generator=source) < rate).float()
    u = membranes(spikes @ weights.T, leak)[100:]
    measured = float(u.var(0).mean().sqrt())
    assert measured == pytest.approx((1 - mean) / xi, rel=0.1)
    among = float(u.mean(0).std()) / math.sqrt(200)
    assert abs(float(u.mean()) - mean) < 4 * among


def test_the_numbers_by_hand():
    # n ν = 10, ε̄ = 2, ε̂ = 4/3: μ_W = 0.5 / 20, σ_W² = 0.25² / (40/3) - μ_W².
    centre, deviation = weight_statistics(100, 0.1, 0.5, xi=2.0, mean=0.5)
    assert centre == pytest.approx(0.025)
    assert deviation**2 == pytest.approx(0.0625 / (40 / 3) - 0.025**2)
    # Three steps without a leak: ε̂ = 3; a constant input of 0.5 has ν̂ = 1/4 and ε̄² = 9.
    assert weight_statistics(10, 0.1, 1.0, steps=3)[1] ** 2 == pytest.approx(1 / 3)
    assert weight_statistics(10, 0.5, 1.0, steps=3, constant=True, power=0.25)[1] ** 2 == pytest.approx(1 / 22.5)


def network(encoder, steps, leak=0.9):
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 30, 3, 2, 1), InTime(LIF(leak), steps), nn.Flatten(),
        nn.Linear(30 * 36, 400), InTime(LIF(leak), steps), nn.Linear(400, 300), InTime(LIF(leak), steps),
    )  # fmt: skip
    return nn.Sequential(SpikingNetwork(encoder, layers, steps), nn.Linear(300, 4)).eval()


IMAGES = torch.rand(20, 1, 12, 12, generator=generator(3))


def test_every_layer_of_a_network_spreads_as_asked():
    steps, copies = 30, 120
    model = network(Poisson(steps, signed=False, rate=0.1), steps)
    head = model[1].weight.clone()
    rates = fluctuation_init(model, IMAGES, xi=1.5)
    assert list(rates) == ["0.layers.0", "0.layers.3", "0.layers.5"]
    assert rates["0.layers.0"] == pytest.approx(0.05, rel=0.1)
    assert torch.equal(model[1].weight, head), "the readout is left alone"
    seen = []
    for place in (0, 3, 5):
        model[0].layers[place].register_forward_hook(lambda module, inputs, out: seen.append(out.detach()))
    with torch.no_grad():
        model(IMAGES[:1].expand(copies, -1, -1, -1))
    first, second, third = (membranes(currents.unflatten(0, (steps, -1)), 0.9)[-1] for currents in seen)
    # Draws of the same image; at the border some inputs are missing. The image itself is brighter or darker than the batch.
    bright = math.sqrt(float(IMAGES[:1].mean() / IMAGES.mean()))
    assert float(first[..., 1:-1, 1:-1].var(0).mean().sqrt()) == pytest.approx(bright / 1.5, rel=0.1)
    # Behind the first neurons trains are independent neither of each other nor in time.
    for u in (second, third):
        assert 0.5 < float(u.square().mean().sqrt()) * 1.5 < 3


def test_a_constant_input_spreads_among_neurons():
    model = network(Direct(5), 5)
    fluctuation_init(model, IMAGES, xi=2.0)
    with torch.no_grad():
        currents = model[0].layers[0](IMAGES)[..., 1:-1, 1:-1]
    u = membranes(currents.expand(5, *currents.shape), 0.9)[-1]
    assert float(u.square().mean().sqrt()) == pytest.approx(0.5, rel=0.15)


def test_draws_repeat_and_leave_modes_alone():
    one, two, other = (network(Direct(4), 4) for _ in range(3))
    one.train()
    fluctuation_init(one, IMAGES)
    fluctuation_init(two, IMAGES)
    fluctuation_init(other, IMAGES, seed=1)
    assert one.training
    assert torch.equal(one[0].layers[3].weight, two[0].layers[3].weight)
    assert not torch.equal(one[0].layers[3].weight, other[0].layers[3].weight)
    assert not one[0].layers[0].bias.any()


def test_what_cannot_be_initialised_is_refused():
    with pytest.raises(InputError, match="before neurons"):
        fluctuation_init(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(InputError, match=r"no input reaches layer '0\.layers\.3'.*lower xi"):
        fluctuation_init(network(Direct(4), 4), IMAGES, xi=50.0)
    for options, what in (
        ({"xi": 0.0}, "xi must be positive"),
        ({"mean": 1.0}, "below the threshold"),
        ({"leak": 1.0}, "how many steps"),
        ({"rate": 0.0}, "rate of inputs must be positive"),
        ({"mean": 0.9, "fan_in": 1, "xi": 3.0}, "no room for fluctuations"),
    ):
        with pytest.raises(UsageError, match=what):
            weight_statistics(**{"fan_in": 10, "rate": 0.1, "leak": 0.9, **options})
