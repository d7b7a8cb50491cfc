"""Powers of z, among them squares, roots and reciprocals."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from stalwart.bounds.curves.bent import Bent, Part
from stalwart.bounds.curves.curve import refuse
from stalwart.bounds.lines import floor
from stalwart.core.numbers import require


@dataclass(frozen=True, eq=False)
class Pow(Bent):
    """z to a constant exponent.

    Attributes:
        exponent: an integer from 2, or an integer below 0 on intervals without 0, or any other number but 0 and 1 on intervals
            in [0, inf) (exponent above 0) or (0, inf) (below 0).

    Raises:
        UsageError: the exponent is 0, 1 or not finite: these are no curves.
    """

    exponent: float | int

    def __post_init__(self) -> None:
        require(
            math.isfinite(self.exponent) and self.exponent not in (0, 1),
            f"bounds of powers need a finite exponent other than 0 and 1, got {self.exponent}.",
        )

    @property
    def _parity(self) -> int | None:
        """0 for even integers, 1 for odd ones, None for others."""
        return int(self.exponent) % 2 if self.exponent == int(self.exponent) else None

    @property
    def convex_from(self) -> float:  # type: ignore[override]
        """0 for odd powers; inf for roots, which are concave."""
        if 0 < self.exponent < 1:
            return math.inf
        return 0.0 if self._parity == 1 else -math.inf

    @property
    def dip(self) -> float:  # type: ignore[override]
        """0 for even powers; powers below 0 fall throughout and others rise."""
        if self.exponent < 0:
            return math.inf
        return 0.0 if self._parity == 0 else -math.inf

    @property
    def codomain(self) -> tuple[float, float]:  # type: ignore[override]
        """[0, inf) unless the power is odd."""
        return (-math.inf if self._parity == 1 else 0.0), math.inf

    def check(self, lower: Tensor, upper: Tensor) -> None:
        """Refuse intervals outside the domain."""
        name = {-1: "reciprocal", 0.5: "sqrt", -0.5: "rsqrt"}.get(self.exponent, f"pow with exponent {self.exponent:g}")
        if self.exponent < 0 and self._parity is not None:
            refuse((lower <= 0) & (upper >= 0), f"{name} needs intervals without 0", lower, upper)
        elif self.exponent < 0:
            refuse(lower <= 0, f"{name} needs intervals above 0", lower, upper)
        elif self._parity is None:
            refuse(lower < 0, f"{name} needs intervals without negative numbers", lower, upper)

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        if 0 < self.exponent < 1:
            # The derivative at 0 is infinite; near 0, 0 in its place keeps gradients finite.
            z = torch.where(z > floor(z), z, z.detach())
        return z.pow(self.exponent)

    def derivative(self, z: Tensor) -> Tensor:
        """Return exponent * z^(exponent - 1), that of a number above 0 where it would be infinite at 0."""
        if self._parity is None:
            z = z.clamp_min(floor(z))
        return self.exponent * z.pow(self.exponent - 1)

    def scale(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return max(|l|, |u|)."""
        return torch.maximum(lower.abs(), upper.abs())

    def extremes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return where f is smallest and largest; even powers below 0 rise on the negative side."""
        if self.exponent < 0 and self._parity == 0:
            positive = lower > 0
            return torch.where(positive, upper, lower), torch.where(positive, lower, upper)
        return super().extremes(lower, upper)

    def stationary(self, slope: Tensor, low: Tensor, high: Tensor, part: Part) -> Tensor:
        """Return ±(slope / exponent)^(1 / (exponent - 1)), on the side of the part."""
        ratio, inverse = slope / self.exponent, 1 / (self.exponent - 1)
        if self._parity == 0 and self.exponent > 0:
            return ratio.sign() * ratio.abs().pow(inverse)
        side = torch.where((high <= 0) & (low < 0), -1.0, 1.0).to(slope)
        if self._parity == 0:
            ratio = ratio * side
        return side * ratio.clamp_min(0).pow(inverse)

    def touch(self, end: Tensor, low: Tensor, high: Tensor, part: Part, from_left: bool) -> Tensor:
        """Return the point of an odd power's other side whose tangent passes f(end): a constant times -end."""
        return -_touch_ratio(int(self.exponent)) * end

    def _at_extremes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        below, above = super()._at_extremes(lower, upper)
        if self._parity == 1 and self.exponent > 0:
            # Rising, and concave first: here tangents from an end to the other part are candidates.
            below = torch.where(lower < 0, self._lower_hull(lower, upper, lower), below)
            above = torch.where(upper > 0, self._upper_hull(lower, upper, upper), above)
        return below, above


@lru_cache
def _touch_ratio(exponent: int) -> float:
    """Return t in (0, 1) with (t^n + 1) / (t + 1) = n t^(n - 1): the tangent of z^n at t passes (-1, -1)."""
    low, high = 0.0, 1.0
    for _ in range(60):
        t = (low + high) / 2
        if exponent * t ** (exponent - 1) * (t + 1) < t**exponent + 1:
            low = t
        else:
            high = t
    return low


def square() -> Pow:
    """Return z²."""
    return Pow(2)


def sqrt() -> Pow:
    """Return √z, on intervals in [0, inf)."""
    return Pow(0.5)


def reciprocal() -> Pow:
    """Return 1 / z, on intervals without 0."""
    return Pow(-1)
