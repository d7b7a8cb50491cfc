"""Curves that are concave, then convex, then concave, any of the parts left out: all smooth functions but sin and cos."""

import abc
import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stalwart.bounds.curves.curve import Curve, rounding
from stalwart.bounds.curves.roots import root
from stalwart.bounds.lines import Strategy, floor

Part = Literal["left", "middle", "right"]
"""The concave part on the left, the convex part, the concave part on the right."""

_GAUSS = 1 / (2 * math.sqrt(3))


class Bent(Curve):
    """A function that falls until ``dip`` and rises from there, concave up to ``convex_from`` and beyond ``convex_to``.

    Slopes are those of the convex hull of f's graph over [l, u] (lower lines) and of its concave hull (upper lines). The lower
    hull is a segment from l to where it touches the convex part, that part itself, and a segment from it to u. The upper hull
    is one concave part, a segment, and the other concave part. With sigmoids these are the usual tangents through an end
    (Zhang et al., 2018, arXiv 1811.00866).

    "Tight" slopes are those of the hulls at the end where f is smallest or largest, and 0 where that is no end. For sigmoid,
    tanh and erf they are min(f'(l), chord) and min(f'(u), chord), and such lines tighten when [l, u] shrinks, so that theorem
    2 of Lyu et al. (2021) holds for these functions too.

    Attributes:
        convex_from: where the convex part begins; -inf without a concave part before it, inf without a convex part.
        convex_to: where it ends.
        dip: where f is smallest; -inf where it rises throughout, inf where it falls.
        reach: beyond it, f' is constant to rounding.
        codomain: what f's values cannot leave; intervals are cut to it after rounding.
    """

    convex_from: float = -math.inf
    convex_to: float = math.inf
    dip: float = -math.inf
    reach: float = math.inf
    codomain: tuple[float, float] = (-math.inf, math.inf)

    @abc.abstractmethod
    def derivative(self, z: Tensor) -> Tensor:
        """Return f'(z)."""

    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return f'(z) and f''(z); needed where f has a convex and a concave part."""
        raise NotImplementedError

    def scale(self, lower: Tensor, upper: Tensor) -> Tensor | float:
        """Return the length over which f changes its shape near [l, u]."""
        return 1.0

    def stationary(self, slope: Tensor, low: Tensor, high: Tensor, part: Part) -> Tensor:
        """Return where f' is ``slope`` in a part of f, of which [low, high] is the piece in use.

        Any answer is sound; a good one makes lines touch. It may lie outside the piece, on the side where f' comes nearest.
        """

        def function(z: Tensor) -> tuple[Tensor, Tensor]:
            first, second = self.derivatives(z)
            return first - slope, second

        return root(function, low, high, part == "middle", self.reach)

    def touch(self, end: Tensor, low: Tensor, high: Tensor, part: Part, from_left: bool) -> Tensor:
        """Return where the line through f at ``end`` (l if ``from_left``, else u) touches f in the piece [low, high]."""
        height = self.value(end)

        def function(z: Tensor) -> tuple[Tensor, Tensor]:
            first, second = self.derivatives(z)
            return first * (z - end) - (self.value(z) - height), second * (z - end)

        return root(function, low, high, (part == "middle") == from_left, self.reach)

    def _touch(self, end: Tensor, low: Tensor, high: Tensor, part: Part, from_left: bool) -> Tensor:
        # Slopes of segments to a tangent point are extremal there, so that it may be a constant for differentiation.
        with torch.no_grad():
            guess = self.touch(end, low, high, part, from_left)
        return _within(guess, low, high)

    def chord(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return (f(u) - f(l)) / (u - l), f' at l = u; by Gauss's rule with two points where the quotient would cancel.

        The rule errs by (u - l)⁵ f⁽⁵⁾ / 4320, which is rounding for u - l below the fifth root of the precision.
        """
        width, middle = upper - lower, lower / 2 + upper / 2
        short = width <= torch.finfo(lower.dtype).eps ** 0.2 * self.scale(lower, upper)
        mean = (self.derivative(middle - _GAUSS * width) + self.derivative(middle + _GAUSS * width)) / 2
        quotient = (self.value(upper) - self.value(lower)) / torch.where(short, 1, width).clamp_min(floor(lower))
        return torch.where(short, mean, quotient)

    def extremes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return the dip or the end next to it, and the end that is higher."""
        if self.dip == -math.inf:
            return lower, upper
        if self.dip == math.inf:
            return upper, lower
        bottom = torch.maximum(lower, upper.clamp_max(self.dip))
        return bottom, torch.where(self.value(upper) >= self.value(lower), upper, lower)

    def interval(
        self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]
    ) -> tuple[Float[Tensor, " *shape"], Float[Tensor, " *shape"]]:
        """Return the smallest and the largest value of f on [l, u], rounded outward."""
        self.check(lower, upper)
        bottom, top = self.extremes(lower, upper)
        low = self.value(bottom) - rounding(self.magnitude(bottom))
        high = self.value(top) + rounding(self.magnitude(top))
        unknown = lower.isnan() | upper.isnan()
        return (
            low.clamp_min(self.codomain[0]).masked_fill(unknown, math.nan),
            high.clamp_max(self.codomain[1]).masked_fill(unknown, math.nan),
        )

    def slopes(self, lower: Tensor, upper: Tensor, strategy: Strategy) -> tuple[Tensor, Tensor]:
        """Return slopes of the hulls: at the midpoint, or for "tight" at the extremes; the chord for "same-slope"."""
        if strategy == "same-slope":
            chord = self.chord(lower, upper)
            return chord, chord
        if strategy == "tight":
            return self._at_extremes(lower, upper)
        middle = lower / 2 + upper / 2
        return self._lower_hull(lower, upper, middle), self._upper_hull(lower, upper, middle)

    def lowest(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        """Return the minimum of f(z) - slope * z over l, u and the convex part."""
        found = torch.minimum(self._above(lower, slope), self._above(upper, slope))
        if self.convex_from >= self.convex_to:
            return found
        low, high = self._piece(lower, upper, "middle")
        return torch.minimum(found, self._turn(low, high, slope, "middle"))

    def highest(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        """Return the maximum of f(z) - slope * z over l, u and the concave parts."""
        found = torch.maximum(self._above(lower, slope), self._above(upper, slope))
        for part in self._concave_parts:
            low, high = self._piece(lower, upper, part)
            found = torch.maximum(found, self._turn(low, high, slope, part))
        return found

    @property
    def _concave_parts(self) -> tuple[Part, ...]:
        left: tuple[Part, ...] = ("left",) if self.convex_from > -math.inf else ()
        return (*left, "right") if self.convex_to < math.inf else left

    def _piece(self, lower: Tensor, upper: Tensor, part: Part) -> tuple[Tensor, Tensor]:
        """Return the ends of [l, u] moved into a part."""
        from_, to = self.convex_from, self.convex_to
        low, high = {"left": (-math.inf, from_), "middle": (from_, to), "right": (to, math.inf)}[part]
        return torch.maximum(lower, upper.clamp_max(low)), torch.maximum(lower, upper.clamp_max(high))

    def _above(self, z: Tensor, slope: Tensor) -> Tensor:
        return torch.addcmul(self.value(z), slope, z, value=-1)

    def _turn(self, low: Tensor, high: Tensor, slope: Tensor, part: Part) -> Tensor:
        """Bound f(z) - slope * z on a piece of one part by its tangent near the stationary point.

        f lies on one side of its tangent at any point p of the part, so an inexact p costs (f'(p) - slope) times a length
        and never soundness.
        """
        with torch.no_grad():
            guess = self.stationary(slope, low, high, part)
        p = _within(guess, low, high)
        with torch.no_grad():
            off = self.derivative(p) - slope
            to_low, to_high = off * (low - p), off * (high - p)
            cost = torch.minimum(to_low, to_high) if part == "middle" else torch.maximum(to_low, to_high)
        return self._above(p, slope) + cost

    def _at_extremes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        # The largest slope that keeps a line through f(l) below f, and so on. Tangents from an end to a farther part are no
        # candidates: where f has a dip they rise above it or fall below the other end.
        chord, at_lower, at_upper = self.chord(lower, upper), self.derivative(lower), self.derivative(upper)
        bottom, top = self.extremes(lower, upper)
        least, most = torch.minimum(at_lower, chord), torch.maximum(at_upper, chord)
        below = torch.where(bottom <= lower, least, torch.where(bottom >= upper, most, 0))
        least, most = torch.minimum(at_upper, chord), torch.maximum(at_lower, chord)
        above = torch.where(top >= upper, least, torch.where(top <= lower, most, 0))
        return below, above

    def _lower_hull(self, lower: Tensor, upper: Tensor, at: Tensor) -> Tensor:
        """Return the slope of the convex hull at a point."""
        whole = self.chord(lower, upper)
        if self.convex_from >= self.convex_to:
            return whole
        low, high = self._piece(lower, upper, "middle")
        slope, begin, end = self.derivative(at), low, high
        if self.convex_from > -math.inf:
            begin = torch.where(lower < self.convex_from, self._touch(lower, low, high, "middle", True), low)
            slope = torch.where(at < begin, self.chord(lower, begin), slope)
        if self.convex_to < math.inf:
            end = torch.where(upper > self.convex_to, self._touch(upper, low, high, "middle", False), high)
            slope = torch.where(at > end, self.chord(end, upper), slope)
        return torch.where(begin < end, slope, whole)

    def _upper_hull(self, lower: Tensor, upper: Tensor, at: Tensor) -> Tensor:
        """Return the slope of the concave hull at a point."""
        begin, end, slope = lower, upper, self.derivative(at)
        if self.convex_from >= self.convex_to:
            return slope
        if self.convex_from > -math.inf:
            low, high = self._piece(lower, upper, "left")
            begin = torch.where(upper > self.convex_from, self._touch(upper, low, high, "left", False), high)
        if self.convex_to < math.inf:
            low, high = self._piece(lower, upper, "right")
            end = torch.where(lower < self.convex_to, self._touch(lower, low, high, "right", True), low)
        return torch.where((at < begin) | (at > end), slope, self.chord(begin, end))


def _within(z: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return z moved into [low, high]; gradients go to an end where it is taken, ties included."""
    return torch.where(z <= low, low, torch.where(z >= high, high, z))
