"""sin and cos: an S-shape or its mirror image on every interval shorter than half a period."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from stalwart.bounds.curves.bent import Bent, Part
from stalwart.bounds.curves.curve import Curve, rounding
from stalwart.bounds.lines import Strategy

_LONGEST = 3.0
"""Longer intervals, from just below half a period, get horizontal lines."""

_COARSE = 1e-3
"""So do intervals at numbers whose spacing is above this."""


class _Arch(Bent):
    """sin on [-π, π]: convex before 0, concave behind."""

    convex_to = 0.0
    reach = math.pi

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return torch.sin(z)

    def derivative(self, z: Tensor) -> Tensor:
        """Return cos(z)."""
        return torch.cos(z)

    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos(z) and -sin(z)."""
        return torch.cos(z), -torch.sin(z)

    def stationary(self, slope: Tensor, low: Tensor, high: Tensor, part: Part) -> Tensor:
        """Return ±arccos(slope)."""
        angle = torch.acos(slope.clamp(-1, 1))
        return angle if part == "right" else -angle

    def extremes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return -π/2 or the lower end, and π/2 or the higher end."""
        rising = torch.sin(upper) >= torch.sin(lower)
        ends = torch.where(rising, lower, upper), torch.where(rising, upper, lower)
        peaks = -math.pi / 2, math.pi / 2
        bottom, top = (
            torch.where((lower <= peak) & (upper >= peak), peak, end) for peak, end in zip(peaks, ends, strict=True)
        )
        return bottom, top


_ARCH = _Arch()


class _Periodic(Curve):
    """sin(z + phase): with k = floor((u + phase) / π) and y = z + phase - k π, plus or minus sin(y) on part of [-π, π]."""

    phase: float = 0.0

    def magnitude(self, z: Tensor) -> Tensor:
        """Return 1 + |z|, since the shift is rounded; 1 where lines are horizontal because of that."""
        return torch.where(self._coarse(z), 1, 1 + z.abs())

    def interval(
        self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]
    ) -> tuple[Float[Tensor, " *shape"], Float[Tensor, " *shape"]]:
        """Return the extremes of f(l) and f(u), or ±1 where a peak is inside or nearly so, rounded outward."""
        first, last = self.value(lower), self.value(upper)
        slack = 8 * torch.finfo(lower.dtype).eps * (1 + torch.maximum(lower.abs(), upper.abs()))
        pad = rounding(torch.ones_like(lower))

        def holds(peak: float) -> Tensor:
            turns = torch.ceil((lower - slack + self.phase - peak) / (2 * math.pi))
            return peak - self.phase + turns * (2 * math.pi) <= upper + slack

        low = torch.where(holds(-math.pi / 2), -1, torch.minimum(first, last) - pad)
        high = torch.where(holds(math.pi / 2), 1, torch.maximum(first, last) + pad)
        return low.clamp_min(-1), high.clamp_max(1)

    def slopes(self, lower: Tensor, upper: Tensor, strategy: Strategy) -> tuple[Tensor, Tensor]:
        """Return slopes of the S-shape, swapped and negated where the sign changes; 0 on long intervals."""
        shift, mirrored = self._reduction(upper)
        below, above = _ARCH.slopes(lower - shift, upper - shift, strategy)
        long = self._long(lower, upper)
        return (
            torch.where(long, 0, torch.where(mirrored, -above, below)),
            torch.where(long, 0, torch.where(mirrored, -below, above)),
        )

    def lowest(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        """Return the minimum of f(z) - slope * z; on long intervals that of f less the maximum of slope * z."""
        shift, mirrored = self._reduction(upper)
        left, right = lower - shift, upper - shift
        found = torch.where(mirrored, -_ARCH.highest(left, right, -slope), _ARCH.lowest(left, right, slope))
        loose = self.interval(lower, upper)[0] - torch.maximum(slope * lower, slope * upper)
        return torch.where(self._long(lower, upper), loose, found - slope * shift)

    def highest(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        """Return the maximum of f(z) - slope * z; on long intervals that of f less the minimum of slope * z."""
        shift, mirrored = self._reduction(upper)
        left, right = lower - shift, upper - shift
        found = torch.where(mirrored, -_ARCH.lowest(left, right, -slope), _ARCH.highest(left, right, slope))
        loose = self.interval(lower, upper)[1] - torch.minimum(slope * lower, slope * upper)
        return torch.where(self._long(lower, upper), loose, found - slope * shift)

    def _pad(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        # slope * y and slope * shift, which lowest() and highest() add, may be larger than their sum.
        return super()._pad(lower, upper, slope) + rounding(math.pi * slope.abs())

    def _reduction(self, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return k π - phase, and whether k is odd."""
        turns = torch.floor((upper.detach() + self.phase) / math.pi)
        return turns * math.pi - self.phase, turns.remainder(2) == 1

    def _coarse(self, z: Tensor) -> Tensor:
        return torch.finfo(z.dtype).eps * z.abs() > _COARSE

    def _long(self, lower: Tensor, upper: Tensor) -> Tensor:
        return (upper - lower > _LONGEST) | self._coarse(lower) | self._coarse(upper)


class Sin(_Periodic):
    """sin(z)."""

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return torch.sin(z)


class Cos(_Periodic):
    """cos(z)."""

    phase = math.pi / 2

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return torch.cos(z)
