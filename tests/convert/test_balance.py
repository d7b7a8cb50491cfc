"""Converted networks: thresholds in order, biases that keep their weight, and the ANN's own answers at many steps."""

import pytest
import torch
from torch import nn

from stalwart.convert import balance_thresholds, spiking_copy
from stalwart.core.errors import InputError, UsageError
from stalwart.core.noise import noise
from stalwart.core.random import generator
from stalwart.models.resnet import BasicBlock
from stalwart.spiking import LIF, Direct, Poisson, neurons, set_steps

X = torch.rand(24, 1, 8, 8, generator=generator(0))


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def ann(bias=False):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=bias), nn.ReLU()),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 32, bias=bias),
        nn.ReLU(),
        nn.Linear(32, 4, bias=bias),
    )


def fire(**options):
    return lambda path: LIF(1.0, **options)


@pytest.mark.parametrize("bias", [False, True])
def test_rates_become_the_activations(bias):
    layers = ann(bias)
    weights = {name: value.clone() for name, value in layers.state_dict().items()}
    network = spiking_copy(layers, Direct(256), 256, fire())
    thresholds = balance_thresholds(network, X)
    # With a constant input the first layer's currents are the ANN's own.
    assert thresholds[0] == pytest.approx(float(layers[0][0](X).max()), rel=1e-5)
    wanted, found = layers(X), network(X) * thresholds[0] * thresholds[1]
    assert (wanted - found).abs().max() < 0.06 * wanted.abs().max()
    errors = []
    for steps in (4, 32, 256):
        set_steps(network, steps)
        errors.append(float((layers(X) - network(X) * thresholds[0] * thresholds[1]).abs().mean()))
    assert errors[0] > errors[1] > errors[2]
    assert all(torch.equal(value, weights[name]) for name, value in layers.state_dict().items())


def test_each_layer_sees_the_balanced_layers_before_it():
    network = spiking_copy(ann(), Poisson(50), 50, fire(order="fire_first"))
    with noise(network, "fixed", seed=1):
        balance_thresholds(network, X)
        seen = []
        second = network.layers[4].neuron
        hook = second.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].max()))
        network(X)
        hook.remove()
    assert float(seen[0]) == pytest.approx(float(second.threshold))


def test_a_percentile_is_taken_over_everything():
    network = spiking_copy(ann(), Direct(3), 3, fire())
    (first, _) = balance_thresholds(network, X, percentile=90.0)
    currents = ann()[0][0](X).flatten().sort().values
    assert first == pytest.approx(float(currents[round(0.9 * len(currents)) - 1]), rel=1e-3)


def test_residual_blocks_keep_their_thresholds():
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), BasicBlock(4, 4, 1), nn.Flatten(), nn.Linear(256, 3)
    )
    network = spiking_copy(layers, Direct(5), 5, fire(threshold=0.7))
    assert len(balance_thresholds(network, X)) == 1
    first, *others = (float(layer.threshold) for layer in neurons(network).values())
    assert first != pytest.approx(0.7)
    assert others == pytest.approx([0.7, 0.7])


def test_what_cannot_be_balanced_is_refused():
    network = spiking_copy(ann(), Direct(3), 3, fire())
    with pytest.raises(UsageError, match="percentile"):
        balance_thresholds(network, X, percentile=0.0)
    network.layers[0][0].weight.fill_(-1.0)
    with pytest.raises(InputError, match="no positive current"):
        balance_thresholds(network, X)
    with pytest.raises(InputError, match="one a layer"):
        balance_thresholds(spiking_copy(ann(), Direct(3), 3, fire(shape=(8, 1, 1))), X)
    with pytest.raises(InputError, match="no plain layer"):
        balance_thresholds(spiking_copy(BasicBlock(1, 4, 1), Direct(3), 3, fire()), X)
    with pytest.raises(UsageError, match="at least 1"):
        set_steps(network, 0)
    with pytest.raises(InputError, match="no spiking network"):
        set_steps(ann(), 3)
