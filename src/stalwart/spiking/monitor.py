"""What neurons do while a model runs: how often they fire, which never do, and what synapses that costs."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stalwart.core.hooks import removing
from stalwart.core.layers import WEIGHTED
from stalwart.spiking.encoders import Direct, Gaussian, Quantised
from stalwart.spiking.network import SpikingNetwork, spiking_networks
from stalwart.spiking.neurons import neurons

MAC_PICOJOULES, AC_PICOJOULES = 4.6, 0.9
"""Energy of a multiply-accumulate and of an accumulate, 32-bit floats in 45 nm (Horowitz, ISSCC 2014)."""


@dataclass
class Activity:
    """One layer of neurons, over all samples and steps that were seen.

    Attributes:
        counts: spikes of each neuron, of the shape of a sample.
        frames: samples x steps.
    """

    counts: Tensor
    frames: int = 0

    @property
    def rate(self) -> float:
        """Spikes of a neuron in a step, on average, in [0, 1]."""
        return float(self.counts.mean()) / max(1, self.frames)

    @property
    def silent(self) -> float:
        """Share of neurons that never fired."""
        return float((self.counts == 0).float().mean())

    @property
    def saturated(self) -> float:
        """Share of neurons that fired in every step."""
        return float((self.counts >= self.frames).float().mean())


@dataclass
class Synapses:
    """One linear or convolutional layer.

    Attributes:
        macs: products of one pass of one frame, as an ANN's layer has them.
        spiking: whether its inputs are spikes, so that only those that are not 0 cost an accumulate each.
        frames: how many frames passed.
        active: over all frames, the sum of the shares of inputs that are not 0.
    """

    macs: int
    spiking: bool
    frames: int = 0
    active: float = 0.0


@dataclass
class Watched:
    """What :func:`monitor` has seen, by module path; operations and energy are those of one input."""

    layers: dict[str, Activity] = field(default_factory=dict)
    synapses: dict[str, Synapses] = field(default_factory=dict)
    samples: int = 0

    @property
    def ann_macs(self) -> int:
        """Multiply-accumulates through the same layers without time."""
        return sum(one.macs for one in self.synapses.values())

    @property
    def macs(self) -> float:
        """Multiply-accumulates of layers whose inputs are no spikes."""
        return sum(one.macs * one.frames for one in self.synapses.values() if not one.spiking) / max(1, self.samples)

    @property
    def acs(self) -> float:
        """Accumulates: one for each synapse of each spike."""
        return sum(one.macs * one.active for one in self.synapses.values() if one.spiking) / max(1, self.samples)

    @property
    def picojoules(self) -> tuple[float, float]:
        """Energy by the figures of 45 nm, of the spiking network and of the ANN."""
        return self.macs * MAC_PICOJOULES + self.acs * AC_PICOJOULES, self.ann_macs * MAC_PICOJOULES


@contextlib.contextmanager
def monitor(model: nn.Module) -> Iterator[Watched]:
    """Watch a model's neurons and synapses while it runs inside the block; outputs stay as they are.

    Layers behind the last neurons see means over time, and count as in an ANN. Inputs of a layer before the first neurons
    count as spikes where the encoder sends spikes.

    Args:
        model: one with spiking networks; what it computes between them and after them is watched too.
    """
    found, inside, hooks = Watched(), set(), []
    for path, layer in neurons(model).items():
        hooks.append(layer.register_forward_hook(_counter(found, path)))
    for network in spiking_networks(model):
        sends = not isinstance(_coding(network), Direct | Gaussian)
        analog = set() if sends else _before_neurons(network)
        inside |= {layer for layer in network.modules() if isinstance(layer, WEIGHTED) and layer not in analog}
    for path, module in model.named_modules():
        if isinstance(module, WEIGHTED):
            hooks.append(module.register_forward_hook(_meter(found, path, module in inside)))

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.samples += len(inputs[0])

    hooks.append(model.register_forward_pre_hook(count))
    with removing(hooks):
        yield found


def _coding(network: SpikingNetwork) -> nn.Module:
    encoder = network.encoder
    return encoder.encoder if isinstance(encoder, Quantised) else encoder


def _before_neurons(network: SpikingNetwork) -> set[nn.Module]:
    """Return the synapses that see the encoder's output and not that of neurons."""
    found: set[nn.Module] = set()
    watched = set(neurons(network).values())
    for layer in network.layers.modules():
        if layer in watched:
            break
        if isinstance(layer, WEIGHTED):
            found.add(layer)
    return found


def _counter(found: Watched, path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def count(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        spikes = (out.detach() != 0).sum((0, 1)).double()
        held = found.layers.setdefault(path, Activity(torch.zeros_like(spikes)))
        held.counts += spikes
        held.frames += out.shape[0] * out.shape[1]

    return count


def _meter(found: Watched, path: str, spiking: bool) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def measure(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        x, weight = inputs[0].detach(), module.weight
        assert isinstance(weight, Tensor)
        held = found.synapses.setdefault(path, Synapses(out[0].numel() * weight[0].numel(), spiking))
        held.frames += len(x)
        held.active += float((x != 0).double().mean()) * len(x)

    return measure
