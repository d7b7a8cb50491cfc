"""What a spiking neuron emits and keeps, as functions of its membrane that jump at the threshold."""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stalwart.bounds.curves.curve import Curve
from stalwart.bounds.curves.steps import Step, shortest
from stalwart.bounds.lines import Strategy

_REACH = 0.5
"""Half the width of the window in which a jump passes gradients to the ends of an interval."""


class _Window(torch.autograd.Function):
    """A jump whose gradient is that of a line of slope 1 inside the window."""

    @staticmethod
    def forward(context: Any, z: Tensor, threshold: Tensor, strict: bool) -> Tensor:
        context.save_for_backward(z, threshold)
        return ((z > threshold) if strict else (z >= threshold)).to(z)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        z, threshold = context.saved_tensors
        passed = gradients[0] * ((z - threshold).abs() < _REACH)
        return passed, (-passed).sum_to_size(threshold.shape), None


@dataclass(frozen=True, eq=False)
class Fire(Step):
    """1 from the threshold on, or beyond it if ``strict``, 0 before: the spike of a neuron.

    The ends of its interval pass gradients through a rectangle of width 1 around the threshold, so that networks can be
    trained on their bounds (Liang et al., NeurIPS 2022, "Toward robust spiking neural network against adversarial
    perturbation").

    Attributes:
        threshold: positive, broadcasts against z.
        strict: whether a membrane at the threshold stays silent.
    """

    threshold: Tensor
    strict: bool = False

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        found: Tensor = _Window.apply(z, self.threshold.to(z), self.strict)
        return torch.where(z.isnan(), z, found)


@dataclass(frozen=True, eq=False)
class Keep(Curve):
    """What is left of a membrane z after the time step: z below the threshold, beyond it z - θ, or 0 after a hard reset.

    The upper hull runs along z to the threshold and from there to u; the lower one through (θ, 0), if that lies below the
    chord. On an interval that holds the threshold the values span [min(l, 0), max(θ, f(u))], which for a hard reset is the
    rule of S-IBP (Liang et al., NeurIPS 2022).

    Attributes:
        threshold: positive, broadcasts against z.
        hard: whether a spike sets the membrane to 0.
        strict: whether a membrane at the threshold stays silent.
    """

    threshold: Tensor
    hard: bool = False
    strict: bool = False

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        left = torch.zeros_like(z) if self.hard else z - self.threshold
        above = z > self.threshold if self.strict else z >= self.threshold
        return torch.where(z.isnan(), z, torch.where(above, left, z))

    def interval(
        self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]
    ) -> tuple[Float[Tensor, " *shape"], Float[Tensor, " *shape"]]:
        """Return the least and the largest of both ends and both limits at the threshold."""
        flat = torch.zeros_like(lower)
        return self.lowest(lower, upper, flat), self.highest(lower, upper, flat)

    def linear_on(self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]) -> Bool[Tensor, " *shape"]:
        """Return where no end of [l, u] lies on the other side of the jump."""
        return self._silent(upper) | ~self._silent(lower)

    def slopes(self, lower: Tensor, upper: Tensor, strategy: Strategy) -> tuple[Tensor, Tensor]:
        """Return the slopes of the hulls at the midpoint, of their steep sides ("one"), or of lines inside [min f, max f]."""
        behind = 0.0 if self.hard else 1.0
        least = shortest(lower, upper)
        chord = (self.value(upper) - self.value(lower)) / torch.maximum(upper - lower, least)
        piece = torch.where(self._silent(upper), 1.0, behind).to(lower)
        settled = self.linear_on(lower, upper)
        if strategy == "same-slope":
            slope = torch.where(settled, piece, chord)
            return slope, slope
        if strategy == "tight":
            slope = torch.where(settled, piece, 0)
            return slope, slope
        to_zero = -lower / torch.maximum(self.threshold - lower, least)
        from_top = (self.value(upper) - self.threshold) / torch.maximum(upper - self.threshold, least)
        bent = to_zero <= behind
        right = (lower + upper >= 2 * self.threshold) if strategy == "adaptive" else torch.ones_like(settled)
        below = torch.where(bent, torch.where(right, behind, to_zero), chord)
        above = torch.where(right & (strategy == "adaptive"), from_top, 1.0)
        return torch.where(settled, piece, below), torch.where(settled, piece, above)

    def lowest(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        """Return the minimum of f(z) - slope * z over the ends and the limit from the right, which is 0 at the threshold."""
        return reduce(torch.minimum, self._heights(lower, upper, slope))

    def highest(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        """Return the maximum of f(z) - slope * z over the ends and the limit from the left, θ at the threshold."""
        return reduce(torch.maximum, self._heights(lower, upper, slope))

    def magnitude(self, z: Tensor) -> Tensor:
        """Return |z| + θ."""
        return z.abs() + self.threshold

    def _silent(self, z: Tensor) -> Tensor:
        return z <= self.threshold if self.strict else z < self.threshold

    def _heights(self, lower: Tensor, upper: Tensor, slope: Tensor) -> list[Tensor]:
        ends = [torch.addcmul(self.value(z), slope, z, value=-1) for z in (lower, upper)]
        at = slope * self.threshold
        from_left = (lower < self.threshold) & (upper >= self.threshold)
        from_right = (lower <= self.threshold) & (upper > self.threshold)
        return [
            *ends,
            torch.where(from_left, self.threshold - at, ends[0]),
            torch.where(from_right, -at, ends[0]),
        ]
