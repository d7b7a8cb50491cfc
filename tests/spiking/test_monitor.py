"""Activity and operations against counts by hand."""

import pytest
import torch
from torch import nn

from stalwart.spiking import LIF, Direct, EventFrames, SpikingNetwork, monitor, with_neurons


def network(encoder, steps):
    layers = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False), nn.ReLU())
    model = SpikingNetwork(encoder, with_neurons(layers, steps, lambda path: LIF(1.0, 1.0)), steps)
    with torch.no_grad():
        # Currents 1, 0.5 and 0 for an input of ones: fires always, every second step, never.
        layers[1].weight.copy_(torch.tensor([[0.25] * 4, [0.125] * 4, [0.0] * 4]))
        layers[3].weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    return nn.Sequential(model, nn.Linear(2, 5))


def test_rates_and_operations_by_hand():
    model, x = network(Direct(4), 4), torch.ones(6, 1, 2, 2)
    with torch.no_grad():
        plain = model(x)
        with monitor(model) as seen:
            assert torch.equal(model(x[:2]), plain[:2])
            model(x[2:])
    first, second = seen.layers.values()
    assert list(seen.layers) == ["0.layers.2.neuron", "0.layers.4.neuron"]
    assert first.rate == pytest.approx((1 + 0.5 + 0) / 3)
    assert first.silent == pytest.approx(1 / 3)
    assert first.saturated == pytest.approx(1 / 3)
    assert (second.rate, second.silent, second.saturated) == pytest.approx((0.5, 0.5, 0.5))
    assert seen.ann_macs == 12 + 6 + 10
    # The constant input passes the first layer once, the head sees means; half of 3 inputs x 4 steps x 2 synapses are spikes.
    assert seen.macs == pytest.approx(12 + 10)
    assert seen.acs == pytest.approx(0.5 * 6 * 4)
    assert seen.picojoules == pytest.approx((22 * 4.6 + 12 * 0.9, 28 * 4.6))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_spikes_from_the_encoder_cost_accumulates():
    model = network(EventFrames(4), 4)
    x = torch.zeros(3, 4, 1, 2, 2)
    x[:, 0] = 1.0
    with torch.no_grad(), monitor(model) as seen:
        model(x)
    # A quarter of the frames is white: 12 synapses each, and of the 3 neurons one fires once.
    assert seen.macs == 10
    assert seen.acs == pytest.approx(12 + 2)
