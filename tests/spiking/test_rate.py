"""Neurons that learn by their rates: trains by hand, the rate map by finite differences, rates that follow it."""

import math

import pytest
import torch
from torch import nn

from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.models import build_model
from stalwart.models.spiking import Spiking
from stalwart.spiking import RateNeuron, gradients, rate_map

KINDS = {"fire": {"height": 1.5}, "leaky": {"height": 0.3, "share": 0.3, "tau": 1.0}}


def weights(neuron, steps):
    """Return what means weigh steps by, written out."""
    if neuron.tau is None:
        return torch.full((steps,), 1 / steps, dtype=torch.float64)
    w = torch.tensor(
        [math.exp(-neuron.dt / neuron.tau * (steps - t)) for t in range(1, steps + 1)], dtype=torch.float64
    )
    return w / w.sum()


def test_trains_by_hand():
    # V = 1, a = 1/2: u = .4, .8 fires, .2, .6 fires, 0, ...
    out = RateNeuron(height=1.0)(torch.full((6, 1, 1), 0.4, dtype=torch.float64))
    assert out.flatten().tolist() == [0, 1, 0, 1, 0, 0]
    # Negative currents keep it silent; more than V a step saturates it.
    assert not RateNeuron(height=1.0)(torch.full((6, 1, 1), -1.0)).any()
    assert RateNeuron(height=2.0)(torch.full((6, 1, 1), 9.0)).unique().tolist() == [2]
    # β = 1/2: u = .3, .45; the threshold is .4; u = .45 - .8 = -.35, then .125, .3625, .48125, which fires; it emits V / dt.
    leaky = RateNeuron(height=0.8, share=0.5, tau=0.05 / math.log(2), dt=0.05)
    assert leaky(torch.full((6, 1, 1), 0.6)).flatten().tolist() == pytest.approx([0, 16, 0, 0, 16, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_mean_outputs_follow_the_rate_map(kind):
    # Over many steps the weighted mean output differs from the map by a spike's share at most; the map's 1 / τ is (1 - β) / dt
    # up to dt / 2 τ.
    neuron = RateNeuron(**KINDS[kind])
    steps = 400
    mean = torch.linspace(-2, 9, 60, dtype=torch.float64)
    with torch.no_grad():
        out = neuron(mean.expand(steps, 1, 60))
    found = (weights(neuron, steps)[:, None, None] * out).sum(0)[0]
    expected = rate_map(mean, neuron.height.detach(), neuron.tau)
    room = 0.02 * float(expected.max()) if kind == "fire" else 0.06 * float(expected.max())
    assert float((found - expected).abs().max()) < room
    assert 0 < int((expected > 0).sum()) < 60


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences_of_the_rate_map(kind):
    neuron = RateNeuron(**KINDS[kind]).double()
    steps, source = 7, generator(4)
    currents = (4 * torch.randn(steps, 3, 40, generator=source, dtype=torch.float64) + 2).requires_grad_()
    w = weights(neuron, steps).reshape(-1, 1, 1)
    g = torch.randn(3, 40, generator=source, dtype=torch.float64)
    loss = ((w * neuron(currents)).sum(0) * g).sum()
    of_currents, of_height = torch.autograd.grad(loss, (currents, neuron.height))

    def value(x, height):
        return float((rate_map((w * x).sum(0), height, neuron.tau) * g).sum())

    x, height, step = currents.detach(), float(neuron.height.detach()), 1e-6
    numeric = (value(x, height + step) - value(x, height - step)) / (2 * step)
    assert float(of_height) == pytest.approx(numeric, rel=1e-5)
    assert of_height != 0
    for where in [(t, b, n) for t in (0, 3, 6) for b in range(3) for n in range(0, 40, 5)]:
        moved = torch.zeros_like(x)
        moved[where] = step
        numeric = (value(x + moved, height) - value(x - moved, height)) / (2 * step)
        assert float(of_currents[where]) == pytest.approx(numeric, abs=1e-7)
    assert 0 < int((of_currents[0] == 0).sum()) < 120


def test_the_height_stays_above_its_floor_and_the_authors_scale_is_an_option():
    neuron = RateNeuron(height=1.0, floor=0.5)
    with torch.no_grad():
        neuron.height.fill_(-3.0)
    out = neuron(torch.full((4, 1, 1), 9.0))
    assert out.unique().tolist() == [0.5]
    out.sum().backward()
    assert float(neuron.height.grad) == 4
    exact, theirs = (RateNeuron(height=0.3, tau=1.0, height_gradient=one) for one in (None, 0.05))
    for one in (exact, theirs):
        one(torch.full((4, 1, 1), 99.0)).sum().backward()
    assert float(exact.height.grad) == pytest.approx(4 * 20)
    assert float(theirs.height.grad) == pytest.approx(4 * 0.05)
    assert not list(RateNeuron(trained=False).parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_attacks_may_go_through_time_instead(kind):
    neuron = RateNeuron(**KINDS[kind])
    x = torch.rand(5, 2, 8, generator=generator(0)).requires_grad_()
    g = torch.randn(5, 2, 8, generator=generator(1))

    def gradient():
        return torch.autograd.grad(neuron(x), x, g)[0]

    usual, out = gradient(), neuron(x)
    with gradients(neuron, "triangle"):
        assert torch.equal(neuron(x), out)
        assert not torch.allclose(gradient(), usual)
    assert torch.equal(gradient(), usual)
    with pytest.raises(InputError, match=r"RateNeuron.*no backward mode 'cba'"), gradients(neuron, backward="cba"):
        pass


def test_a_model_of_them_learns():
    model = build_model("mlp", (1, 4, 4), 2, spiking=Spiking(steps=5, neuron={"name": "rate", "height": 2.0}, gain=1.0))
    x = torch.rand(64, 1, 4, 4, generator=generator(2))
    y = (x[:, 0, :2].sum((1, 2)) > x[:, 0, 2:].sum((1, 2))).long()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float((model(x).argmax(1) == y).float().mean()) > 0.9


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"height": 0.0}, "height of spikes must be positive"),
        ({"share": 1.5}, "share must lie in"),
        ({"tau": 0.0}, "tau must be positive"),
        ({"floor": 7.0}, "at most the height"),
    ],
)
def test_impossible_options_are_refused(options, what):
    with pytest.raises(UsageError, match=what):
        RateNeuron(**options)
