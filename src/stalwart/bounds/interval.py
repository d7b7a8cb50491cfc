"""Lower and upper ends of a tensor's values."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Interval:
    """Ends ``lower`` and ``upper`` of one shape, [B, ...] for values that depend on the input."""

    lower: Tensor
    upper: Tensor

    @property
    def centre(self) -> Tensor:
        """Return (lower + upper) / 2."""
        return (self.lower + self.upper) / 2

    @property
    def reach(self) -> Tensor:
        """Return (upper - lower) / 2, the distance from the centre to the ends."""
        return (self.upper - self.lower) / 2

    @staticmethod
    def around(centre: Tensor, reach: Tensor) -> "Interval":
        """Return [centre - reach, centre + reach]."""
        return Interval(centre - reach, centre + reach)

    def intersect(self, other: "Interval") -> "Interval":
        """Return the larger lower and the smaller upper end; where two sound bounds cross by rounding, their midpoint."""
        return Interval(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))
