"""Layers of neurons, and how their gradients are swapped on a trained network."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stalwart.core.disturbed import Disturbed
from stalwart.core.errors import InputError
from stalwart.core.numbers import Number, require
from stalwart.spiking.lif import lif
from stalwart.spiking.modes import BACKWARDS
from stalwart.spiking.reference import ORDERS, RESETS, Dynamics, advance
from stalwart.spiking.step import fire, keep
from stalwart.spiking.surrogates import InMembranes, Surrogate, find_surrogate

UNITS = ("threshold", "membrane")
_EXTRAS = {"initial": 0.0, "bias": 0.0, "height": 1.0}


class Neurons(Disturbed):
    """Base of all layers of neurons, currents [T, B, ...] to spikes of the same shape; nothing is kept between calls.

    Attributes:
        surrogate: the derivative of a spike.
        backward_mode: how gradients pass, "bptt" with the surrogate.
        modes: the modes of :mod:`stalwart.spiking.modes` that this kind of neurons has.
    """

    surrogate: Surrogate
    backward_mode: str
    modes: ClassVar[tuple[str, ...]] = ("bptt",)

    def choose(self, surrogate: Surrogate | None, backward: str | None) -> None:
        """Let gradients pass in another way; None leaves what is."""
        self.surrogate = self.surrogate if surrogate is None else surrogate
        self.backward_mode = self.backward_mode if backward is None else backward

    def distances(self, x: Tensor) -> Tensor:
        """Return how far membranes are from where neurons fire, in units of the threshold, [T, B, ...], for what they see.

        Raises:
            InputError: such neurons have no threshold that membranes are compared with.
        """
        raise InputError(f"{type(self).__name__} neurons do not tell how far they are from their threshold.")

    def resume(self, currents: Tensor, membrane: Tensor | None) -> tuple[Tensor, Tensor]:
        """Go on where a period of steps ended.

        Args:
            currents: of this period, [T, B, ...].
            membrane: what the period before kept, [B, ...], a constant; None at the start.

        Returns:
            the spikes [T, B, ...] and what is kept, [B, ...].

        Raises:
            InputError: such neurons cannot.
        """
        raise InputError(f"{type(self).__name__} neurons cannot run a period of their steps; use 'lif'.")


class LIF(Neurons):
    """Leaky integrate-and-fire neurons, currents [T, B, ...] to spikes [T, B, ...]; nothing is kept between calls.

    Args:
        leak: λ in [0, 1]; 1 makes them integrate-and-fire neurons.
        threshold: θ, positive.
        shape: of leaks and thresholds: () for one a layer, (C, 1, 1) for one a channel, or a sample's own for one a neuron.
        trained: which of "leak" and "threshold" are parameters rather than buffers.
        reset, order, detach_reset, surrogate: as :func:`stalwart.spiking.lif` says.
        floor: a trained threshold that training takes lower works as this one, positive.
        unit: what widths of surrogates are measured in: the "threshold", or "membrane", whatever the threshold, which must
            then be one a layer.
        extras: which of the buffers below there are, for :mod:`stalwart.convert` to fill; they start without effect.

    Attributes:
        initial: membranes before the first step, 0 by default.
        bias: a current that flows in every step.
        height: what a spike is worth, 1 by default.

    Raises:
        UsageError: a leak or threshold out of range, an unknown name.

    Example:
        >>> LIF(leak=1.0)(torch.full((2, 1, 3), 0.75)).sum()
        tensor(3.)
    """

    leak: Tensor
    threshold: Tensor
    initial: Tensor | None
    bias: Tensor | None
    height: Tensor | None
    modes: ClassVar[tuple[str, ...]] = BACKWARDS
    disturbable: ClassVar[tuple[str, ...]] = ("threshold", "leak", "bias", "membrane")

    def __init__(
        self,
        leak: Number = 0.5,
        threshold: Number = 1.0,
        shape: tuple[int, ...] = (),
        trained: tuple[str, ...] = (),
        reset: str = "soft",
        order: str = "integrate_first",
        detach_reset: bool = True,
        surrogate: Surrogate | str | Mapping[str, Any] = "atan",
        floor: Number = 1e-3,
        unit: str = "threshold",
        extras: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        require(0 <= leak <= 1, f"the leak of neurons must lie in [0, 1], got {leak}.")
        require(
            threshold > 0 and math.isfinite(threshold), f"the threshold of neurons must be positive, got {threshold}."
        )
        require(reset in RESETS, f"unknown reset '{reset}'; known: {', '.join(RESETS)}.")
        require(order in ORDERS, f"unknown order '{order}'; known: {', '.join(ORDERS)}.")
        unknown = set(trained) - {"leak", "threshold"}
        require(not unknown, f"neurons can train their leak and threshold, not {', '.join(sorted(unknown))}.")
        for name, value in (("leak", leak), ("threshold", threshold)):
            start = torch.full(shape, float(value))
            if name in trained:
                self.register_parameter(name, nn.Parameter(start))
            else:
                self.register_buffer(name, start)
        require(0 < floor <= threshold, f"floor must be positive and at most the threshold {threshold}, got {floor}.")
        require(unit in UNITS, f"unknown unit '{unit}'; known: {', '.join(UNITS)}.")
        require(
            unit == "threshold" or shape == (),
            "widths in units of the membrane need one threshold a layer, of shape ().",
        )
        unknown = set(extras) - set(_EXTRAS)
        require(not unknown, f"neurons can have {', '.join(_EXTRAS)}, not {', '.join(sorted(unknown))}.")
        require(
            "initial" not in extras or order == "integrate_first",
            "neurons that fire first start from a membrane of 0; use order 'integrate_first'.",
        )
        for name, neutral in _EXTRAS.items():
            self.register_buffer(name, torch.full(extras[name], neutral) if name in extras else None)
        self.reset, self.order, self.detach_reset = reset, order, detach_reset
        self.surrogate, self.unit, self.floor = find_surrogate(surrogate), unit, float(floor)
        self.backward_mode = "bptt"

    def forward(self, currents: Tensor, pool: bool = False) -> Tensor:
        """Map currents [T, B, ...] to spikes of the same shape, or with ``pool`` to their 2 x 2 means."""
        driven, leak, threshold = self._given(currents)
        return self._spikes(self._started(driven, leak), leak, threshold, pool)

    def assumed(self, threshold: Tensor) -> Surrogate:
        """Return the derivative of a spike in units of a threshold, whatever unit its widths are in."""
        if self.unit == "membrane" and self.surrogate.code >= 0:  # those without a code adapt to their arguments
            return InMembranes(self.surrogate, float(threshold.detach()))
        return self.surrogate

    def membranes(self, currents: Tensor) -> Tensor:
        """Return the membranes [T, B, ...] that decide on spikes, of currents of the same shape."""
        driven, leak, threshold = self._given(currents)
        return advance(self._started(driven, leak), leak, threshold, Dynamics(self.reset, self.order))[1]

    def distances(self, x: Tensor) -> Tensor:
        """Return u / θ - 1 [T, B, ...] of currents of the same shape."""
        driven, leak, threshold = self._given(x)
        u = advance(self._started(driven, leak), leak, threshold, Dynamics(self.reset, self.order))[1]
        return u / threshold - 1

    def resume(self, currents: Tensor, membrane: Tensor | None) -> tuple[Tensor, Tensor]:
        """Go on from membranes [B, ...], see :meth:`Neurons.resume`."""
        driven, leak, threshold = self._given(currents)
        first = self.order == "integrate_first"
        if membrane is None:
            given = self._started(driven, leak)
        elif first:
            given = _from(driven, leak * membrane)
        else:
            # What is kept decides the first spike: let a step of it go before, in which nothing fires.
            given = torch.cat([membrane.unsqueeze(0), driven])
        spikes = self._spikes(given, leak, threshold)
        with torch.no_grad():
            v = advance(given, leak, threshold, Dynamics(self.reset, self.order))[2]
        return spikes if membrane is None or first else spikes[1:], v

    @torch.no_grad()
    def fill(self, **values: Tensor) -> None:
        """Set threshold, leak and extras by name, in place; each value broadcasts to the shape of its own.

        Raises:
            InputError: the neurons lack one.
        """
        for name, value in values.items():
            own = getattr(self, name)
            if own is None:
                raise InputError(f"these neurons have no {name} to set; make them with extras={{'{name}': ()}}.")
            own.copy_(value)

    def one_step(self, current: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the spikes [B, ...] of one step and the membrane that is kept, by operators that bounds know.

        Args:
            current: [B, ...].
            before: the membrane that the step before kept; None at the first step.
        """
        if self.disturbances:
            raise InputError("bounds do not know what a device does to neurons; bound the network outside of its chip.")
        leak, threshold = self.leak, self.threshold
        if self.bias is not None:
            current = current + self.bias
        before = before if before is not None else None if self.initial is None else self.initial
        if self.order == "integrate_first":
            u = current if before is None else leak * before + current
            spikes = fire(u, threshold, False)
            kept = u if self.reset == "none" else keep(u, threshold, self.reset == "hard", False)
        elif before is None:
            # The membrane of the step before decides; nothing has been integrated at the first step.
            spikes, kept = current * 0, current
        elif self.reset == "hard":
            spikes = fire(before, threshold, True)
            kept = leak * keep(before, threshold, True, True) + current
        else:
            spikes = fire(before, threshold, True)
            lost = threshold * spikes if self.reset == "soft" else 0.0
            kept = leak * before + current - lost
        return (spikes if self.height is None else self.height * spikes), kept

    def _given(self, currents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return all currents, the leak and the threshold, as the device has them where the network is on one."""
        leak, threshold = self._numbers()
        driven = currents if self.bias is None else currents + self.bias
        if not self.disturbances:
            return driven, leak, threshold
        neurons = currents.shape[2:]
        # Membranes take up a step's current as it is, so that noise on them is noise on it.
        noise = self.membrane_noise(currents)
        driven = driven + threshold * self.on_chip("bias", torch.zeros_like(threshold), neurons)
        driven = driven if noise is None else driven + threshold * noise
        return driven, self.on_chip("leak", leak, neurons), self.on_chip("threshold", threshold, neurons)

    def _started(self, driven: Tensor, leak: Tensor) -> Tensor:
        return driven if self.initial is None else _from(driven, leak * self.initial)

    def _numbers(self) -> tuple[Tensor, Tensor]:
        # A step of the optimiser may leave the range; where it did, no gradient leads further out.
        leak = self.leak.clamp(0, 1) if isinstance(self.leak, nn.Parameter) else self.leak
        threshold = self.threshold
        return leak, threshold.clamp_min(self.floor) if isinstance(threshold, nn.Parameter) else threshold

    def _spikes(self, currents: Tensor, leak: Tensor, threshold: Tensor, pool: bool = False) -> Tensor:
        spikes = lif(
            currents,
            leak,
            threshold,
            self.reset,
            self.assumed(self._numbers()[1]),
            self.order,
            self.detach_reset,
            self.backward_mode,
            pool,
        )
        return spikes if self.height is None else self.height * spikes

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return f"{tuple(self.threshold.shape)}, reset={self.reset}, order={self.order}, surrogate={self.surrogate}"


def _from(currents: Tensor, first: Tensor) -> Tensor:
    """Return currents with more in the first step: what is left of a membrane is as good as a current."""
    given = currents.clone()
    given[0] += first
    return given


def neurons(model: nn.Module) -> dict[str, Neurons]:
    """Return the model's layers of neurons by module path."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, Neurons)}


def raise_thresholds(model: nn.Module) -> None:
    """Raise every trained threshold below its floor to it, after a step of the optimiser: below there is no gradient."""
    with torch.no_grad():
        for layer in neurons(model).values():
            if isinstance(layer, LIF) and isinstance(layer.threshold, nn.Parameter):
                layer.threshold.clamp_(min=layer.floor)


@contextlib.contextmanager
def gradients(
    model: nn.Module, surrogate: Surrogate | str | Mapping[str, Any] | None = None, backward: str | None = None
) -> Iterator[None]:
    """Let gradients pass every layer of neurons in another way inside the block; the forward pass stays as it is.

    Args:
        model: a trained network.
        surrogate: the derivative of a spike; None keeps each layer's own.
        backward: a mode of :mod:`stalwart.spiking.modes`; None keeps each layer's own.

    Raises:
        InputError: the model has no neurons, or some that do not have this mode.
        UsageError: an unknown surrogate or mode.
    """
    require(
        backward is None or backward in BACKWARDS, f"unknown backward mode '{backward}'; known: {', '.join(BACKWARDS)}."
    )
    found = None if surrogate is None else find_surrogate(surrogate)
    by_path = neurons(model)
    layers = list(by_path.values())
    for path, layer in by_path.items():
        if backward is not None and backward not in layer.modes:
            raise InputError(
                f"neurons at '{path}' ({type(layer).__name__}) have no backward mode '{backward}', only "
                f"{', '.join(layer.modes)}; choose one of these, or a surrogate."
            )
    if not layers:
        raise InputError(
            "the model has no spiking neurons whose gradient could be chosen; leave surrogate and backward out."
        )
    with restored(layers):
        for layer in layers:
            layer.choose(found, backward)
        yield


@contextlib.contextmanager
def restored(layers: Sequence[Neurons]) -> Iterator[None]:
    """Put back how gradients pass the layers when the block ends."""
    before = [(layer.surrogate, layer.backward_mode) for layer in layers]
    try:
        yield
    finally:
        for layer, (own, mode) in zip(layers, before, strict=True):
            layer.surrogate, layer.backward_mode = own, mode
