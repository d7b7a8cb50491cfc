"""A spiking network from any stack of layers: encoder, layers over all time steps, mean over time.

Inside, tensors are [T * B, ...], time first, so that convolutions, batch norm, pooling and residual sums are the layers they
always were; only neurons see time. With a constant encoding the layers before the first neuron run once, not T times.
"""

from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from stalwart.core.errors import InputError
from stalwart.core.modes import is_stepwise
from stalwart.core.numbers import require
from stalwart.spiking.neurons import LIF, Neurons
from stalwart.spiking.period import current_period
from stalwart.spiking.step import fire, keep

_MEMBRANES: ContextVar[dict[nn.Module, Tensor] | None] = ContextVar("membranes", default=None)
"""What each neuron layer kept from the step before, while a network runs step by step."""


class InTime(nn.Module):
    """Neurons inside layers that see [T * B, ...]: they unfold time, run all steps in one call, and fold it again.

    Args:
        neuron: maps currents [T, B, ...] to spikes [T, B, ...].
        steps: T.
    """

    def __init__(self, neuron: Neurons, steps: int) -> None:
        super().__init__()
        self.neuron = neuron
        self.steps = steps

    def forward(self, currents: Tensor) -> Tensor:
        """Map currents [T * B, ...] to spikes of the same shape; step by step, [B, ...] to [B, ...]."""
        if is_stepwise():
            return self._one_step(currents)
        return self._run(currents.unflatten(0, (self._steps(), -1)))

    def held(self, currents: Tensor) -> Tensor:
        """Map currents [B, ...] that stay the same in every step to spikes [T * B, ...]."""
        return self._run(currents.expand(self._steps(), *currents.shape))

    def _steps(self) -> int:
        now = current_period()
        return self.steps if now is None else now.steps

    def _run(self, currents: Tensor) -> Tensor:
        now = current_period()
        spikes: Tensor
        if now is None:
            spikes = self.neuron(currents)
        else:
            spikes, now.after[self] = self.neuron.resume(currents, now.before.get(self))
        return spikes.flatten(0, 1)

    def _one_step(self, current: Tensor) -> Tensor:
        membranes = _MEMBRANES.get()
        if membranes is None:
            raise InputError("neurons run step by step only inside their network; bound the whole model.")
        neuron, before = self.neuron, membranes.get(self)
        if not isinstance(neuron, LIF):
            raise InputError(f"bounds know the steps of LIF neurons only, not of {type(neuron).__name__}.")
        leak, threshold = neuron.leak, neuron.threshold
        if neuron.order == "integrate_first":
            u = current if before is None else leak * before + current
            membranes[self] = u if neuron.reset == "none" else keep(u, threshold, neuron.reset == "hard", False)
            return fire(u, threshold, False)
        # The membrane of the step before decides; nothing has been integrated at the first step.
        if before is None:
            membranes[self] = current
            return current * 0
        spikes = fire(before, threshold, True)
        if neuron.reset == "hard":
            membranes[self] = leak * keep(before, threshold, True, True) + current
        else:
            lost = threshold * spikes if neuron.reset == "soft" else 0.0
            membranes[self] = leak * before + current - lost
        return spikes


class SharedDropout(nn.Module):
    """Dropout whose mask is drawn once a sample and shared by all time steps (Sharmin et al., ECCV 2020, section 3).

    Args:
        rate: probability of dropping an entry, in [0, 1).
        steps: T.
    """

    def __init__(self, rate: float, steps: int) -> None:
        super().__init__()
        require(0 <= rate < 1, f"dropout must be in [0, 1), got {rate:g}.")
        self.rate, self.steps = rate, steps

    def forward(self, x: Tensor) -> Tensor:
        """Map [T * B, ...] to the same shape; nothing happens in evaluation mode."""
        if not self.training or self.rate == 0:
            return x
        now = current_period()
        in_time = x.unflatten(0, (self.steps if now is None else now.steps, -1))
        mask = None if now is None else now.before.get(self)
        if mask is None:
            mask = nn.functional.dropout(torch.ones_like(in_time[0]), self.rate)
        if now is not None:
            now.after[self] = mask
        return (in_time * mask).flatten(0, 1)


class SpikingNetwork(nn.Module):
    """x -> mean over T of layers(encoder(x)): firing rates, where the last layer is one of neurons.

    Args:
        encoder: maps [B, ...] to [T, B, ...]; ``in_steps``, if it has that, to a list of T tensors [B, ...], for bounds.
        layers: maps [T * B, ...] to [T * B, ...], its neurons as :class:`InTime`; see :func:`with_neurons`.
        steps: T, at least 1.
    """

    def __init__(self, encoder: nn.Module, layers: nn.Module, steps: int) -> None:
        super().__init__()
        require(steps >= 1, f"a spiking network needs at least 1 time step, got {steps}.")
        self.encoder, self.layers, self.steps = encoder, layers, steps

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs [B, ...] to the mean over time of the last layer's output [B, ...]."""
        if is_stepwise():
            return self._step_by_step(x)
        encoded: Tensor = self.encoder(x)
        now = current_period()
        if now is not None:
            require(now.last <= self.steps, f"the network has {self.steps} steps, not {now.last}.")
            encoded = encoded[now.first : now.last]
        layers, out = self.layers, encoded
        constant = len(encoded) > 1 and encoded.stride(0) == 0
        first = self._first_neuron() if constant else None
        if first is None:
            out = layers(encoded.flatten(0, 1))
        else:
            assert isinstance(layers, nn.Sequential)
            neurons = layers[first]
            assert isinstance(neurons, InTime)
            out = layers[first + 1 :](neurons.held(layers[:first](encoded[0])))
        if now is None:
            return out.unflatten(0, (self.steps, -1)).mean(0)
        total = out.unflatten(0, (now.steps, -1)).sum(0) + now.before.get(self, 0)
        now.after[self] = total.detach()
        return total / now.last

    def _step_by_step(self, x: Tensor) -> Tensor:
        in_steps = getattr(self.encoder, "in_steps", None)
        first, *others = self.encoder(x).unbind(0) if in_steps is None else in_steps(x)
        token = _MEMBRANES.set({})
        try:
            total: Tensor = self.layers(first)
            for encoded in others:
                total = total + self.layers(encoded)
        finally:
            _MEMBRANES.reset(token)
        return total / self.steps

    def _first_neuron(self) -> int | None:
        """Return the place of the first neurons, where all layers before it are without time."""
        if isinstance(self.layers, nn.Sequential):
            for place, layer in enumerate(self.layers):
                if isinstance(layer, InTime):
                    return place
                if any(isinstance(inner, InTime) for inner in layer.modules()):
                    return None
        return None


def with_neurons(layers: nn.Module, steps: int, neuron: Callable[[str], Neurons]) -> nn.Module:
    """Replace each ReLU by neurons and each dropout by one that time steps share, in place, and return the layers.

    Args:
        layers: any module whose activations are ``nn.ReLU`` modules.
        steps: T.
        neuron: makes the neurons for a module path.

    Raises:
        InputError: there is no ReLU to replace.
    """
    found = 0
    for path, module in list(layers.named_modules()):
        made: nn.Module
        if isinstance(module, nn.ReLU):
            made, found = InTime(neuron(path), steps), found + 1
        elif isinstance(module, nn.Dropout):
            made = SharedDropout(module.p, steps)
        else:
            continue
        owner, _, name = path.rpartition(".")
        setattr(layers.get_submodule(owner), name, made)
    if not found:
        raise InputError("no ReLU module to put neurons in the place of; a spiking network needs one at least.")
    return layers
