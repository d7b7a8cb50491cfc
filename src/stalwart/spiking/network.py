"""A spiking network from any stack of layers: encoder, layers over all time steps, mean over time.

Inside, tensors are [T * B, ...], time first, so that convolutions, batch norm, pooling and residual sums are the layers they
always were; only neurons see time. With a constant encoding the layers before the first neuron run once, not T times.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stalwart.core.errors import InputError
from stalwart.core.layers import put
from stalwart.core.layout import channels_last
from stalwart.core.modes import is_stepwise
from stalwart.core.numbers import require
from stalwart.spiking.neurons import LIF, Neurons
from stalwart.spiking.period import current_period
from stalwart.spiking.qcfs import QCFS

_MEMBRANES: ContextVar[dict[nn.Module, Tensor] | None] = ContextVar("membranes", default=None)
"""What each neuron layer kept from the step before, while a network runs step by step."""
_FRAMES = 64
"""How many frames, samples x steps, pass together: their activations fit in the cache."""


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
        return self.in_time(currents.unflatten(0, (self._steps(), -1))).flatten(0, 1)

    def in_time(self, currents: Tensor, pool: bool = False) -> Tensor:
        """Map currents [T, B, ...] to spikes of the same shape, or to their 2 x 2 means."""
        now = current_period()
        if now is None:
            return self.neuron(currents, pool=True) if pool else self.neuron(currents)
        spikes, now.after[self] = self.neuron.resume(currents, now.before.get(self))
        return spikes

    def _steps(self) -> int:
        now = current_period()
        return self.steps if now is None else now.steps

    def _one_step(self, current: Tensor) -> Tensor:
        membranes = _MEMBRANES.get()
        if membranes is None:
            raise InputError("neurons run step by step only inside their network; bound the whole model.")
        neuron, before = self.neuron, membranes.get(self)
        if not isinstance(neuron, LIF):
            raise InputError(f"bounds know the steps of LIF neurons only, not of {type(neuron).__name__}.")
        spikes, membranes[self] = neuron.one_step(current, before)
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


Plan = list[tuple[nn.Module, bool]]
"""Layers in order, each with whether the pooling behind it happens in its neurons."""


class SpikingNetwork(nn.Module):
    """x -> mean over T of layers(encoder(x)): firing rates, where the last layer is one of neurons.

    Large batches pass in parts whose activations fit in the cache, wherever layers treat each sample for itself.

    Args:
        encoder: maps [B, ...] to [T, B, ...]; ``in_steps``, if it has that, to a list of T tensors [B, ...], for bounds.
        layers: maps [T * B, ...] to [T * B, ...], its neurons as :class:`InTime`; see :func:`with_neurons`.
        steps: T, at least 1.
        recompute: whether the backward pass computes the activations of each part anew instead of keeping all of them: a
            fraction of the memory for one more forward pass. Only where layers treat each sample for itself.
        wait: how many steps pass before those that the mean is of, fewer than T.
    """

    def __init__(
        self, encoder: nn.Module, layers: nn.Module, steps: int, recompute: bool = False, wait: int = 0
    ) -> None:
        super().__init__()
        require(steps >= 1, f"a spiking network needs at least 1 time step, got {steps}.")
        require(0 <= wait < steps, f"a network of {steps} steps can wait for fewer of them, not for {wait}.")
        self.encoder, self.layers, self.steps, self.recompute, self.wait = encoder, layers, steps, recompute, wait

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs [B, ...] to the mean over time of the last layer's output [B, ...]."""
        if is_stepwise():
            return self._step_by_step(x)
        encoded: Tensor = self.encoder(x)
        now = current_period()
        if now is not None:
            require(now.last <= self.steps, f"the network has {self.steps} steps, not {now.last}.")
            require(self.wait == 0, "a network that waits for its first steps cannot run a period of them.")
            encoded = encoded[now.first : now.last]
        # One copy of what stays the same in every step; it is expanded where time begins.
        shown = encoded[:1] if len(encoded) > 1 and encoded.stride(0) == 0 else encoded
        plan = _plan(self.layers)
        if now is not None:
            total = now.steps * self._part(plan, shown, now.steps, 0) + now.before.get(self, 0)
            now.after[self] = total.detach()
            return total / now.last
        whole = not _each_for_itself(self.layers)
        require(not (whole and self.recompute), "recompute needs layers that treat each sample for itself.")
        parts = (shown,) if whole else shown.split(max(1, _FRAMES // self.steps), 1)
        if self.recompute and torch.is_grad_enabled():
            found = [checkpoint(self._part, plan, part, self.steps, self.wait, use_reentrant=False) for part in parts]
        else:
            found = [self._part(plan, part, self.steps, self.wait) for part in parts]
        return found[0] if len(found) == 1 else torch.cat(found)

    @staticmethod
    def _part(plan: Plan, x: Tensor, steps: int, wait: int) -> Tensor:
        """Map [T, B, ...], or [1, B, ...] that stays the same, to the mean of the last layer's output over time."""
        for layer, pool in plan:
            if isinstance(layer, InTime) and not _watched(layer):
                x = layer.in_time(x.expand(steps, *x.shape[1:]), pool)
                continue
            if any(isinstance(inner, InTime | SharedDropout) for inner in layer.modules()):
                x = x.expand(steps, *x.shape[1:])
            frames = x.flatten(0, 1)
            # Convolutions are faster on channels last, and pooling then happens where spikes arise.
            x = layer(channels_last(frames) if frames.dim() == 4 else frames).unflatten(0, x.shape[:2])
        return x[0] if len(x) == 1 else x[wait:].mean(0)

    def _step_by_step(self, x: Tensor) -> Tensor:
        in_steps = getattr(self.encoder, "in_steps", None)
        first, *others = self.encoder(x).unbind(0) if in_steps is None else in_steps(x)
        token = _MEMBRANES.set({})
        try:
            found = [self.layers(one) for one in (first, *others)][self.wait :]
        finally:
            _MEMBRANES.reset(token)
        total: Tensor = found[0]
        for one in found[1:]:
            total = total + one
        return total / len(found)


def spiking_networks(model: nn.Module) -> list[SpikingNetwork]:
    """Return the spiking networks in a model, itself included."""
    return [module for module in model.modules() if isinstance(module, SpikingNetwork)]


@contextlib.contextmanager
def keeping(model: nn.Module) -> Iterator[None]:
    """Let spiking networks in a model keep their activations inside the block, whatever ``recompute`` says.

    A backward pass that computes them anew would do so with the weights that the model has by then, which are others where
    weights are replaced for one call.
    """
    networks = [(network, network.recompute) for network in spiking_networks(model)]
    try:
        for network, _ in networks:
            network.recompute = False
        yield
    finally:
        for network, recompute in networks:
            network.recompute = recompute


def set_steps(model: nn.Module, steps: int) -> None:
    """Let every spiking network in a model, and its encoder, run for another number of time steps, in place.

    Raises:
        InputError: the model has none.
        UsageError: no step.
    """
    networks = spiking_networks(model)
    if not networks:
        raise InputError("the model has no spiking network whose time steps could be changed.")
    least = 1 + max(network.wait for network in networks)
    require(steps >= least, f"the network needs at least {least} time step{'s' * (least > 1)}, got {steps}.")
    for network in networks:
        for part in network.modules():
            if isinstance(getattr(part, "steps", None), int):
                part.steps = steps  # type: ignore[assignment]


_SAMPLE_WISE = (
    InTime,
    LIF,
    SharedDropout,
    nn.AvgPool2d,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.Flatten,
    nn.Identity,
    nn.Linear,
    nn.MaxPool2d,
    nn.Sequential,
)


def _each_for_itself(layers: nn.Module) -> bool:
    """Tell whether layers are known to treat each sample for itself, and nobody watches them."""
    return not _watched(layers) and all(
        isinstance(one, _SAMPLE_WISE) or (isinstance(one, nn.BatchNorm2d | nn.BatchNorm1d) and not one.training)
        for one in layers.modules()
    )


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _watched(layer: nn.Module) -> bool:
    return any(map(_hooked, layer.modules()))


def _plan(layers: nn.Module) -> Plan:
    plan: Plan = []
    for layer in _in_order(layers):
        last, pools = plan[-1] if plan else (None, False)
        if isinstance(last, InTime) and not pools and _fuses(last, layer):
            plan[-1] = (last, True)
        else:
            plan.append((layer, False))
    return plan


def _in_order(layers: nn.Module) -> list[nn.Module]:
    if isinstance(layers, nn.Sequential) and not _hooked(layers):
        return [one for layer in layers for one in _in_order(layer)]
    return [layers]


def _fuses(neurons: InTime, layer: nn.Module) -> bool:
    """Tell whether a layer is 2 x 2 average pooling that neurons can do where they fire."""
    if not isinstance(layer, nn.AvgPool2d) or _watched(neurons) or _hooked(layer):
        return False
    if not isinstance(neurons.neuron, LIF) or current_period() is not None:
        return False
    two, padding = (2, (2, 2)), (0, (0, 0))
    plain = layer.padding in padding and not layer.ceil_mode and layer.divisor_override in (None, 4)
    return plain and layer.kernel_size in two and layer.stride in two


def with_neurons(layers: nn.Module, steps: int, neuron: Callable[[str], Neurons]) -> nn.Module:
    """Replace each ReLU by neurons and each dropout by one that time steps share, in place, and return the layers.

    Args:
        layers: any module whose activations are ``nn.ReLU`` or :class:`stalwart.spiking.QCFS` modules.
        steps: T.
        neuron: makes the neurons for a module path.

    Raises:
        InputError: there is no ReLU to replace.
    """
    found = 0
    for path, module in list(layers.named_modules(remove_duplicate=False)):
        made: nn.Module
        if isinstance(module, nn.ReLU | QCFS):
            made, found = InTime(neuron(path), steps), found + 1
        elif isinstance(module, nn.Dropout):
            made = SharedDropout(module.p, steps)
        else:
            continue
        put(layers, path, made)
    if not found:
        raise InputError("no ReLU module to put neurons in the place of; a spiking network needs one at least.")
    return layers
