"""Functions of one jump: sign and the Heaviside function."""

from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stalwart.bounds.curves.curve import Curve
from stalwart.bounds.lines import Strategy

_SHORTEST = 1024
"""Slopes are those of jumps at least this many units in the last place from an end: steeper ones only gain rounding errors."""


def shortest(lower: Tensor, upper: Tensor) -> Tensor:
    """Return the shortest side of a jump that slopes are computed from, a constant for differentiation."""
    info = torch.finfo(lower.dtype)
    return _SHORTEST * info.eps * torch.maximum(lower.abs(), upper.abs()).detach() + info.tiny**0.25


class Step(Curve):
    """``bottom`` below ``threshold``, ``top`` above, either or a value between them at it.

    The lower hull is flat up to the threshold and runs from there to the top at u; the upper hull runs from the bottom at l to
    the threshold, and is flat behind.
    """

    bottom: float = 0.0
    top: float = 1.0
    threshold: float | int | Tensor = 0.0

    def interval(
        self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]
    ) -> tuple[Float[Tensor, " *shape"], Float[Tensor, " *shape"]]:
        """Return f(l) and f(u), which are exact."""
        return self.value(lower), self.value(upper)

    def linear_on(self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]) -> Bool[Tensor, " *shape"]:
        """Return where f(l) = f(u)."""
        return self.value(lower) == self.value(upper)

    def slopes(self, lower: Tensor, upper: Tensor, strategy: Strategy) -> tuple[Tensor, Tensor]:
        """Return the slopes of the hulls at the midpoint ("adaptive"), at the ends ("tight": 0) or of their steep sides."""
        if strategy == "tight":
            flat = torch.zeros_like(lower)
            return flat, flat
        jump = self.value(upper) - self.value(lower)
        least = shortest(lower, upper)
        if strategy == "same-slope":
            chord = jump / torch.maximum(upper - lower, least)
            return chord, chord
        below = jump / torch.maximum(upper - self.threshold, least)
        above = jump / torch.maximum(self.threshold - lower, least)
        if strategy == "one":
            return below, above
        right = lower + upper >= 2 * self.threshold
        return torch.where(right, below, 0), torch.where(right, 0, above)

    def lowest(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        """Return the minimum of f(z) - slope * z over the ends and the left limit at the threshold."""
        jumps = (lower < self.threshold) & (upper >= self.threshold)
        return reduce(torch.minimum, self._heights(lower, upper, slope, jumps, self.bottom))

    def highest(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        """Return the maximum of f(z) - slope * z over the ends and the right limit at the threshold."""
        jumps = (lower <= self.threshold) & (upper > self.threshold)
        return reduce(torch.maximum, self._heights(lower, upper, slope, jumps, self.top))

    def _heights(self, lower: Tensor, upper: Tensor, slope: Tensor, jumps: Tensor, limit: float) -> list[Tensor]:
        ends = [torch.addcmul(self.value(z), slope, z, value=-1) for z in (lower, upper)]
        return [*ends, torch.where(jumps, limit - slope * self.threshold, ends[0])]


class Sign(Step):
    """-1 below 0, 0 at 0, 1 above."""

    bottom = -1.0

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return torch.where(z.isnan(), z, z.sign())


@dataclass(frozen=True, eq=False)
class Heaviside(Step):
    """1 from ``threshold`` on, 0 before: the spike of a neuron.

    Attributes:
        threshold: a number, or a tensor that broadcasts against z.
    """

    threshold: float | int | Tensor = 0.0

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return torch.where(z.isnan(), z, (z >= self.threshold).to(z))
