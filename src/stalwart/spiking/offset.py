"""Integrate-and-fire neurons that look first whether they fire a spike too many or too few, and then start shifted by it."""

import torch
from torch import Tensor

from stalwart.core.errors import InputError
from stalwart.core.numbers import Number, require
from stalwart.spiking.neurons import LIF
from stalwart.spiking.reference import Dynamics, advance


class OffsetIF(LIF):
    """Soft-reset neurons of leak 1 whose first ρ steps only say where the others start, [ρ + T, B, ...] to the same shape.

        after ρ steps from v₀:  v₀ ← v₀ - θ  where v < 0 and it fired,   v₀ ← v₀ + θ  where v >= θ

    Then T steps run from v₀ again. Give the network ``wait=ρ``, so that the first steps do not count: its latency is ρ + T.
    Gradients pass the neurons as if nothing had been shifted.
    Source: Hao et al., "Bridging the gap between ANNs and SNNs by calibrating offset spikes", ICLR 2023, algorithm 1.

    Args:
        look: ρ, at least 1.
        threshold: θ, positive.
        extras: as :class:`stalwart.spiking.LIF` says.

    Raises:
        UsageError: a number out of range.
    """

    def __init__(
        self, look: int = 4, threshold: Number = 1.0, extras: dict[str, tuple[int, ...]] | None = None
    ) -> None:
        super().__init__(1.0, threshold, reset="soft", extras=extras or {})
        require(look >= 1, f"neurons need at least 1 step to look at, got {look}.")
        self.look = look

    def forward(self, currents: Tensor, pool: bool = False) -> Tensor:
        """Map currents [ρ + T, B, ...] to spikes of the same shape, or with ``pool`` to their 2 x 2 means.

        Raises:
            InputError: no step is left after the first ρ.
        """
        leak, threshold = self._numbers()
        parts = self._parts(currents, leak, threshold)
        return torch.cat([self._spikes(part, leak, threshold, pool) for part in parts])

    def membranes(self, currents: Tensor) -> Tensor:
        """Return the membranes [ρ + T, B, ...] that decide on spikes."""
        leak, threshold = self._numbers()
        parts = self._parts(currents, leak, threshold)
        return torch.cat([advance(part, leak, threshold, Dynamics("soft"))[1] for part in parts])

    def _parts(self, currents: Tensor, leak: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the first ρ steps integrate, and what the others do, the shift included."""
        if len(currents) <= self.look:
            raise InputError(
                f"these neurons look at {self.look} steps before they count, so {len(currents)} steps are too few; set more."
            )
        first, rest = currents[: self.look], currents[self.look :]
        first = self._started(first, leak)
        with torch.no_grad():
            spikes, _, v = advance(first, leak, threshold, Dynamics("soft"))
            shift = threshold * ((v >= threshold).to(v) - ((v < 0) & (spikes.amax(0) > 0)).to(v))
        again = self._started(rest, leak).clone()
        again[0] += shift
        return first, again

    def resume(self, currents: Tensor, membrane: Tensor | None) -> tuple[Tensor, Tensor]:
        """Refuse: what a step does depends on the first ρ."""
        raise InputError("neurons that calibrate their offset cannot run a period of their steps; use 'lif'.")

    def one_step(self, current: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Refuse: all of the first ρ steps decide where the others start."""
        raise InputError(
            "neurons that calibrate their offset do not run step by step, as bounds and ONNX files need; convert by another "
            "method."
        )
