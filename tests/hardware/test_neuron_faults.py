"""Faults of neurons: their statistics against what they say, frozen for each chip or fresh at each read, and what they do."""

import math

import pytest
import torch
from chip_networks import assert_same, cnn, snapshot
from torch import nn

from stalwart.core.disturbed import Disturbed
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.hardware import MembraneNoise, Mismatch, NeuronMismatch, Quantise, accuracies
from stalwart.spiking import (
    LIF,
    AdaptiveLIF,
    Direct,
    RecurrentLIF,
    SpikingNetwork,
    monitor,
    with_neurons,
)
from stalwart.spiking.neurons import Neurons

MANY = torch.Size([100_000])


class Numbers(Neurons):
    """Neurons that tell their numbers as the chip has them."""

    disturbable = ("threshold", "leak", "bias", "membrane")

    def forward(self, x):
        return torch.stack(
            [
                self.on_chip("threshold", torch.tensor(0.5), MANY).expand(MANY),
                self.on_chip("leak", torch.tensor(0.8), MANY).expand(MANY),
                self.on_chip("bias", torch.zeros(()), MANY).expand(MANY),
            ]
        )


@pytest.mark.parametrize("level", [0.1, 0.3])
@pytest.mark.parametrize("mode", ["log-normal", "gaussian"])
def test_levels_are_the_deviations_that_they_say(level, mode):
    layer, x = Numbers(), torch.zeros(1)
    with NeuronMismatch(level, "threshold", mode).chip(layer, 0):
        threshold, leak, bias = layer(x)
    assert torch.equal(leak, torch.full(MANY, 0.8))
    assert not bias.any()
    ratio = threshold / 0.5
    shown = ratio.log() if mode == "log-normal" else ratio - 1
    assert float(shown.std()) == pytest.approx(level, rel=0.02)
    assert float(shown.mean()) == pytest.approx(0, abs=0.02 * level + 1e-3)
    with NeuronMismatch(level, "tau", mode).chip(layer, 0):
        threshold, leak, bias = layer(x)
    assert torch.equal(threshold, torch.full(MANY, 0.5))
    ratio = math.log(0.8) / leak.log()  # τ' / τ, of leaks exp(-dt / τ)
    shown = ratio.log() if mode == "log-normal" else ratio - 1
    assert float(shown.std()) == pytest.approx(level, rel=0.02)
    assert 0 <= float(leak.min()) < float(leak.max()) < 1
    with NeuronMismatch(level, "bias").chip(layer, 0):
        assert float(layer(x)[2].std()) == pytest.approx(level, rel=0.02)


def lif_net():
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU())
    layers = with_neurons(layers, 5, lambda path: LIF(leak=0.9, surrogate="triangle"))
    with torch.no_grad():
        for layer in (layers[1], layers[3]):
            layer.weight.mul_(3)
    return nn.Sequential(SpikingNetwork(Direct(5), layers, 5), nn.Linear(20, 3)).eval()


X = torch.rand(30, 1, 4, 4, generator=generator(0))


def recurrent(kind):
    torch.manual_seed(1)
    layer = kind(6, 12)
    with torch.no_grad():
        layer.input.weight.mul_(3)
    return layer


SERIES = torch.rand(9, 5, 6, generator=generator(1))
CASES = [(lif_net, X), (lambda: recurrent(RecurrentLIF), SERIES), (lambda: recurrent(AdaptiveLIF), SERIES)]


@pytest.mark.parametrize(("build", "x"), CASES)
@pytest.mark.parametrize("of", ["threshold", "tau", "bias"])
def test_mismatch_is_frozen_in_a_chip_and_differs_between_chips(build, x, of):
    model = build()
    clean, before = model(x), snapshot(model)
    device = NeuronMismatch(0.7, of)
    chip = device.chip(model, 0)
    with chip:
        first = model(x)
        assert torch.equal(model(x), first)
        # A sample has the same neurons whatever stands beside it.
        part = model(x[:2]) if x is X else model(x[:, :2])
        torch.testing.assert_close(part, first[:2] if x is X else first[:, :2])
    with chip:
        assert torch.equal(model(x), first)
    assert torch.equal(model(x), clean)
    assert_same(before, snapshot(model))
    assert all(not layer.disturbances for layer in model.modules() if isinstance(layer, Disturbed))
    assert not torch.equal(first, clean)
    with device.chip(model, 1):
        assert not torch.equal(model(x), first)


@pytest.mark.parametrize(("build", "x"), CASES)
def test_membrane_noise_is_fresh_at_each_read_and_repeats_by_seed(build, x):
    model = build()
    clean = model(x)
    with MembraneNoise(0.5).chip(model, 0):
        first, second = model(x), model(x)
    assert not torch.equal(first, second)
    with MembraneNoise(0.5).chip(model, 0):
        assert torch.equal(model(x), first)
    with MembraneNoise(0.5).chip(model, 0, reads=1):
        assert not torch.equal(model(x), first)
    assert torch.equal(model(x), clean)


def test_membrane_noise_has_the_deviation_that_it_says():
    for threshold in (0.5, 2.0):
        layer = LIF(leak=0.5, threshold=threshold)
        with MembraneNoise(0.2).chip(layer, 0):
            distances = layer.distances(torch.full((1, 1, 100_000), 0.25))
        assert float(distances.std()) == pytest.approx(0.2, rel=0.02)
        assert float(distances.mean()) == pytest.approx(0.25 / threshold - 1, abs=0.005)
    for kind in (RecurrentLIF, AdaptiveLIF):
        layer = kind(1, 3)
        nn.init.zeros_(layer.input.weight)
        with MembraneNoise(0.2).chip(layer, 0):
            distances = layer.distances(torch.zeros(1, 40_000, 1)).detach() + 1
        assert float(distances.std()) == pytest.approx(0.2, rel=0.02), kind


def test_neurons_by_hand_with_other_numbers():
    class Fixed:
        def __init__(self, **numbers):
            self.numbers = numbers

        def changed(self, name, value):
            return value + self.numbers.get(name, 0.0)

        def membrane(self, like):
            return None

    currents = torch.rand(8, 3, 4, generator=generator(4))
    layer = LIF(leak=0.5, threshold=0.8)
    other = LIF(leak=0.75, threshold=1.0, extras={"bias": ()})
    other.fill(bias=torch.tensor(0.16))
    layer.disturbances = (Fixed(leak=0.25, threshold=0.2, bias=0.2),)  # 0.2 of the threshold 0.8
    assert torch.equal(layer(currents), other(currents))
    torch.testing.assert_close(layer.distances(currents), other.membranes(currents) - 1)
    kept, wanted = layer.resume(currents[:4], None), other.resume(currents[:4], None)
    assert torch.equal(kept[0], wanted[0])
    torch.testing.assert_close(layer.resume(currents[4:], kept[1])[0], other.resume(currents[4:], wanted[1])[0])
    torch.manual_seed(0)
    one = RecurrentLIF(4, 5, leak=0.5, threshold=0.8)
    two = RecurrentLIF(4, 5, leak=0.75, threshold=1.0)
    two.load_state_dict(one.state_dict())
    one.disturbances = (Fixed(leak=0.25, threshold=0.2),)
    torch.testing.assert_close(one(currents * 4), two(currents * 4))


def test_faults_of_neurons_stand_in_chains_and_in_monte_carlo():
    model = lif_net()
    y = model(X).argmax(1)
    device = Quantise(8) | NeuronMismatch(0.2) | NeuronMismatch(0.2, "tau", only="0.layers.2.*") | MembraneNoise(0.1)
    found = accuracies(model, device, X, y, chips=3, seed=0)
    assert torch.equal(found, accuracies(model, device, X, y, chips=3, seed=0))
    assert accuracies(model, NeuronMismatch(0.0), X, y, chips=1, seed=0).tolist() == [1.0]
    with pytest.raises(UsageError, match="before MembraneNoise"):
        _ = MembraneNoise(0.1) | Mismatch(0.1)
    for part in ("0.2 in ln θ", "0.2 in ln τ (log-normal), on neurons 0.layers.2.*", "membrane noise of standard"):
        assert part in device.describe()


def test_a_layers_draw_does_not_depend_on_which_others_are_chosen():
    model = lif_net()
    with NeuronMismatch(0.5, only="0.layers.2.*").chip(model, 3), monitor(model) as few:
        model(X)
    with NeuronMismatch(0.5).chip(model, 3), monitor(model) as all_of_them:
        model(X)
    first, last = list(few.layers)
    assert torch.equal(few.layers[first].counts, all_of_them.layers[first].counts)
    assert not torch.equal(few.layers[last].counts, all_of_them.layers[last].counts)


def test_what_cannot_be_disturbed_is_refused():
    with pytest.raises(InputError, match="no spiking neurons"), NeuronMismatch(0.1).chip(cnn(), 0):
        pass
    with (
        pytest.raises(UsageError, match="no layer of neurons is called 'x'"),
        NeuronMismatch(0.1, only="x").chip(LIF(), 0),
    ):
        pass
    with pytest.raises(InputError, match="leaks of 0 or 1"), NeuronMismatch(0.1, "tau").chip(LIF(leak=1.0), 0):
        pass

    class Other(Neurons):
        pass

    with pytest.raises(InputError, match="let no device change their membrane"), MembraneNoise(0.1).chip(Other(), 0):
        pass
    with pytest.raises(UsageError, match="write 0.05"):
        NeuronMismatch(5.0)
    with pytest.raises(UsageError, match="write 0.05"):
        MembraneNoise(5.0)
