"""What neurons do on chips, against counts by hand."""

import itertools

import pytest
import torch
from torch import nn

from stalwart.core.random import derive, generator
from stalwart.evaluation.chip_activity import EDGES, chip_activity
from stalwart.evaluation.hardware import measure, steps
from stalwart.evaluation.sweep import sweep
from stalwart.hardware import NeuronMismatch
from stalwart.models import build_model
from stalwart.spiking import LIF, Direct, HoyerNeuron, SpikingNetwork, with_neurons

X = torch.rand(20, 1, 4, 4, generator=generator(0))


def net(neuron=None):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 30), nn.ReLU())
    layers = with_neurons(layers, 5, neuron or (lambda path: LIF(leak=0.9)))
    with torch.no_grad():
        layers[1].weight.mul_(3)
    return nn.Sequential(SpikingNetwork(Direct(5), layers, 5), nn.Linear(30, 3)).eval()


def by_hand(model, x):
    """Return rate, silent and saturated shares and the histogram from one pass of the layers themselves."""
    layers = model[0].layers
    currents = layers[1](x.flatten(1)).expand(5, len(x), 30)
    spikes, distances = layers[2].neuron(currents), layers[2].neuron.distances(currents).flatten()
    counts = spikes.sum((0, 1))
    ends = [-torch.inf, *EDGES, torch.inf]
    shares = [float(((distances > a) & (distances <= b)).float().mean()) for a, b in itertools.pairwise(ends)]
    return float(spikes.mean()), float((counts == 0).float().mean()), float((counts == 100).float().mean()), shares


@torch.no_grad()
def test_activity_is_what_a_count_by_hand_gives():
    model = net()
    found = chip_activity(model, X)
    rate, silent, saturated, shares = by_hand(model, X)
    assert (found.rate, found.silent, found.saturated) == pytest.approx((rate, silent, saturated))
    assert 0 < found.rate < 1
    assert 0 < found.silent < 1
    assert found.distances == pytest.approx(shares)
    assert found.near == pytest.approx(shares[4] + shares[5])
    device = NeuronMismatch(0.5)
    expected = []
    for number in range(2):
        with device.chip(model, derive(3, "chip", number)):
            expected.append(by_hand(model, X)[0])
    assert chip_activity(model, X, device, 3, chips=2).rate == pytest.approx(sum(expected) / 2)
    assert not model[0].layers[2].neuron.disturbances


def test_networks_without_neurons_or_thresholds():
    assert chip_activity(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), X) is None
    torch.manual_seed(0)
    layers = with_neurons(nn.Sequential(nn.Flatten(), nn.Linear(16, 9), nn.ReLU()), 1, lambda path: HoyerNeuron())
    found = chip_activity(nn.Sequential(SpikingNetwork(Direct(1), layers, 1), nn.Linear(9, 3)), X)
    assert found.distances == []
    assert found.near is None


def test_the_suite_has_devices_of_neurons_and_tells_what_they_do():
    model = build_model("rlif", (1, 4, 4), 3, {"hidden": 20}).eval()
    with torch.no_grad():
        model.backbone.neurons.input.weight.mul_(2)
        y = model(X).argmax(1)
    told = []
    found = measure(model, X, y, chips=2, advance=lambda done, note="": told.append(done))
    assert told == list(range(1, steps(model) + 1))
    assert len(found.rows) == len(list(sweep(model))) == len(list(sweep())) + 12
    assert found.activity is not None
    rows = [row for row in found.rows if not row.refused]
    assert all(row.activity is not None and 0 <= row.activity.silent <= 1 for row in rows)
    blocks = {row.block for row in rows}
    assert {"thresholds of neurons", "time constants of neurons", "noise on membranes"} <= blocks
