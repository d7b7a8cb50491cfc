"""Piecewise-linear functions: the one rule of ``lines.py`` over the ends and the kinks, with as few passes as possible."""

import abc
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stalwart.bounds.elementwise import Elementwise
from stalwart.bounds.lines import Lines, Strategy, check_strategy, constant_lines, floor
from stalwart.core.errors import UsageError
from stalwart.core.numbers import require

Scalar = float | int | Tensor
"""A parameter of a function: a number, or a tensor that broadcasts against one sample."""

_ROUNDINGS = 16
"""An intercept is the result of at most ten roundings of terms that :meth:`PiecewiseLinear.outward` counts."""


class PiecewiseLinear(Elementwise):
    """A continuous function of linear pieces between its ``breakpoints``, which are in increasing order.

    Lines and intervals are rounded to nearest; :meth:`outward` and :meth:`outward_interval` make them rigorous.
    """

    piecewise_linear = True

    @property
    @abc.abstractmethod
    def breakpoints(self) -> tuple[Scalar, ...]:
        """The kinks."""

    @property
    @abc.abstractmethod
    def slopes(self) -> tuple[Scalar, ...]:
        """The slopes of the pieces, one more than there are kinks."""

    def interval(
        self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]
    ) -> tuple[Float[Tensor, " *shape"], Float[Tensor, " *shape"]]:
        """Return the extremes of f over l, u and the kinks between them."""
        if all(not isinstance(slope, Tensor) and slope >= 0 for slope in self.slopes):
            return self.value(lower), self.value(upper)
        low = high = self.value(lower)
        for point in self._corners(lower, upper)[1:]:
            value = self.value(point)
            low, high = torch.minimum(low, value), torch.maximum(high, value)
        return low, high

    def lines_with_slope(
        self,
        lower: Float[Tensor, " *shape"],
        upper: Float[Tensor, " *shape"],
        lower_slope: Tensor,
        upper_slope: Tensor | None = None,
    ) -> Lines:
        """Return lines of given slopes by the one rule; see :meth:`Elementwise.lines_with_slope`."""
        usual, settled = self.lines(lower, upper, "adaptive"), self.linear_on(lower, upper)
        below = torch.where(settled, usual.lower_slope, lower_slope)
        points = [(point, self.value(point)) for point in self._corners(lower, upper)]
        low = _extreme(torch.minimum, points, below)
        if upper_slope is None:
            return Lines(below, low, usual.upper_slope, usual.upper_intercept)
        above = torch.where(settled, usual.upper_slope, upper_slope)
        return Lines(below, low, above, _extreme(torch.maximum, points, above))

    def linear_on(self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]) -> Bool[Tensor, " *shape"]:
        """Return where no kink lies strictly inside [l, u]."""
        kinks = self.breakpoints
        found = (upper <= kinks[0]) | (lower >= kinks[-1])
        for left, right in itertools.pairwise(kinks):
            found |= (lower >= left) & (upper <= right)
        return found

    def outward(self, lines: Lines, lower: Tensor, upper: Tensor) -> Lines:
        """Return the lines moved apart by 16 units in the last place of every term that enters them."""
        reach = torch.maximum(lower.abs(), upper.abs()).detach()
        around = reach
        for kink in self.breakpoints:
            around = torch.maximum(around, _tensor(kink, lower).detach().abs())
        steepness = [_tensor(slope, lower).detach().abs() for slope in self.slopes]
        terms, info = around * reduce(torch.add, steepness), torch.finfo(lower.dtype)

        def pad(slope: Tensor) -> Tensor:
            return _ROUNDINGS * (info.eps * (terms + slope.detach().abs() * reach) + info.tiny)

        return Lines(
            lines.lower_slope,
            lines.lower_intercept - pad(lines.lower_slope),
            lines.upper_slope,
            lines.upper_intercept + pad(lines.upper_slope),
        )

    def outward_interval(
        self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]
    ) -> tuple[Float[Tensor, " *shape"], Float[Tensor, " *shape"]]:
        """Return :meth:`interval`, four units in the last place wider unless all slopes are 0 or ±1, which round nothing."""
        low, high = self.interval(lower, upper)
        if all(not isinstance(slope, Tensor) and slope in (-1, 0, 1) for slope in self.slopes):
            return low, high
        info = torch.finfo(low.dtype)
        return low - 4 * (info.eps * low.abs() + info.tiny), high + 4 * (info.eps * high.abs() + info.tiny)

    def _corners(self, lower: Tensor, upper: Tensor) -> list[Tensor]:
        """Return l, u, and each kink moved into [l, u]."""
        inside = (torch.minimum(torch.maximum(lower, _tensor(kink, lower)), upper) for kink in self.breakpoints)
        return [lower, upper, *inside]


@dataclass(frozen=True, eq=False)
class Hinge(PiecewiseLinear):
    """left * min(z, at) + right * max(z, at): ReLU and its relatives, |z|, one-sided clamps.

    Attributes:
        left: slope before the kink, any number.
        right: slope after it, any number.
        at: the kink.
    """

    left: Scalar
    right: Scalar
    at: Scalar = 0.0

    @property
    def breakpoints(self) -> tuple[Scalar, ...]:
        """The kink."""
        return (self.at,)

    @property
    def slopes(self) -> tuple[Scalar, ...]:
        """The slopes before and after the kink."""
        return self.left, self.right

    def value(self, z: Tensor) -> Tensor:
        """Return left * min(z, at) + right * max(z, at)."""
        if _is(self.left, 0):
            return _scaled(_from_above(z, self.at), self.right)
        if _is(self.right, 0):
            return _scaled(_from_below(z, self.at), self.left)
        after, left, right = z > self.at, _tensor(self.left, z), _tensor(self.right, z)
        sloped = torch.where(after, right, left) * z
        return sloped if _is(self.at, 0) else sloped + torch.where(after, left, right) * self.at

    def lines(self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"], strategy: Strategy) -> Lines:
        """Return the chord on the outer side of the bend and a line through the kink on the inner side.

        With v = max(u - at, 0), w = max(at - l, 0) and the bend b = right - left, the chord has slope
        left + b v / (v + w). A side without a bend (v = 0 or w = 0) gets its own piece, exactly.
        """
        check_strategy(strategy)
        if strategy == "constant":
            return constant_lines(*self.interval(lower, upper))
        centred = _is(self.at, 0)
        over = torch.relu(upper if centred else upper - self.at)
        under = torch.relu(-lower if centred else self.at - lower)
        share = over / (over + under).clamp_min(floor(lower))
        # Height of the chord at the kink. The line is hung up at u: a share that `floor` made smaller leaves it sound.
        rise = torch.addcmul(over, share, over, value=-1)
        bend = _like(self.right, lower) - _like(self.left, lower)
        slope = self._mixed(share)
        chord = slope, self._through_kink(slope, rise if _is(bend, 1) else bend * rise)
        if strategy == "same-slope":
            inner = slope
        else:
            inner = self._inner_slope(lower, upper, strategy)
        # The product with 0 hands on NaN.
        kink = inner, self._through_kink(inner, share.detach() * 0)
        if isinstance(bend, Tensor):
            convex = bend >= 0
            low, high = (
                tuple(torch.where(convex, one, other) for one, other in zip(first, second, strict=True))
                for first, second in ((kink, chord), (chord, kink))
            )
            return Lines(*low, *high)
        return Lines(*kink, *chord) if bend >= 0 else Lines(*chord, *kink)

    def _mixed(self, share: Tensor) -> Tensor:
        """Return (1 - share) * left + share * right, exact at both ends."""
        if _is(self.left, 0) and _is(self.right, 1):
            return share
        return torch.lerp(_tensor(self.left, share), _tensor(self.right, share), share)

    def _through_kink(self, slope: Tensor, above: Tensor) -> Tensor:
        """Return the intercept of the line that passes the kink at a height ``above`` f."""
        if _is(self.at, 0):
            return above
        return above + (_like(self.left, slope) + _like(self.right, slope) - slope) * self.at

    def _inner_slope(self, lower: Tensor, upper: Tensor, strategy: Strategy) -> Tensor:
        left, right = _tensor(self.left, lower), _tensor(self.right, lower)
        if strategy == "adaptive":
            return torch.where(lower + upper >= 2 * self.at, right, left)
        if strategy == "one":
            return torch.where(upper > self.at, right, left)
        # Tight: of all slopes between the two, the one nearest 0 stays inside the range of f.
        if not isinstance(self.left, Tensor) and not isinstance(self.right, Tensor) and 0 <= self.left <= self.right:
            return torch.where(lower >= self.at, right, left)
        nearest = torch.minimum(left, right).clamp_min(0) + torch.maximum(left, right).clamp_max(0)
        return torch.where(lower >= self.at, right, torch.where(upper <= self.at, left, nearest))


@dataclass(frozen=True, eq=False)
class Clip(PiecewiseLinear):
    """clamp(z, low, high) + outer * (z - clamp(z, low, high)): slope 1 between the kinks, ``outer`` beyond them.

    Clamps with outer = 0; ParamRamp with low = 0, high = r, outer = eta (Lyu et al., 2021).

    Attributes:
        low: the first kink.
        high: the second kink, at least ``low``.
        outer: slope beyond the kinks, from 0 to 1.

    Raises:
        UsageError: kinks in the wrong order, or ``outer`` out of range.
    """

    low: Scalar
    high: Scalar
    outer: Scalar = 0.0

    def __post_init__(self) -> None:
        require(_all(self.low <= self.high), f"the first kink {self.low} must not be above the second, {self.high}.")
        require(
            _all(self.outer >= 0) and _all(self.outer <= 1), f"the outer slope must be in [0, 1], got {self.outer}."
        )

    @property
    def breakpoints(self) -> tuple[Scalar, ...]:
        """The two kinks."""
        return self.low, self.high

    @property
    def slopes(self) -> tuple[Scalar, ...]:
        """The slopes of the three pieces."""
        return self.outer, 1.0, self.outer

    def value(self, z: Tensor) -> Tensor:
        """Return clamp(z, low, high) + outer * (z - clamp(z, low, high))."""
        inside = _from_below(_from_above(z, self.low), self.high)
        return inside if _is(self.outer, 0) else inside + self.outer * (z - inside)

    def interval(
        self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]
    ) -> tuple[Float[Tensor, " *shape"], Float[Tensor, " *shape"]]:
        """Return f(l), f(u)."""
        return self.value(lower), self.value(upper)

    def lines(self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"], strategy: Strategy) -> Lines:
        """Return lines of the clamp, to which ``outer`` * z is added.

        The lower hull of the clamp is its first flat piece, then the chord from the first kink (or l) to u; the upper hull
        is the chord from l to the second kink (or u), then the last flat piece.
        """
        check_strategy(strategy)
        if strategy == "constant":
            return constant_lines(*self.interval(lower, upper))
        # The ends moved behind the first kink (q, p) and before the second (a, b), and the clamp's values at the ends.
        q, p = _from_above(lower, self.low), _from_above(upper, self.low)
        a, b = _from_below(lower, self.high), _from_below(upper, self.high)
        first, last = _from_above(a, self.low), _from_above(b, self.low)
        rise = last - first
        tiny = floor(lower)
        if strategy == "same-slope":
            inner = (lower >= self.low) & (upper <= self.high)
            rising = falling = torch.where(inner, 1.0, rise / (upper - lower).clamp_min(tiny))
        else:
            # A chord within one piece has that piece's slope, also where its length is 0.
            rising = torch.where(upper > self.high, rise / (p - q).clamp_min(tiny), 1.0)
            falling = torch.where(lower < self.low, rise / (b - a).clamp_min(tiny), 1.0)
            if strategy == "tight":
                steep_below, steep_above = lower >= self.low, upper <= self.high
            elif strategy == "adaptive":
                steep_below, steep_above = lower + upper >= 2 * self.low, lower + upper <= 2 * self.high
            else:
                steep_below, steep_above = upper > self.low, lower < self.high
            rising, falling = rising * steep_below, falling * steep_above
        # The lower line touches at q and the upper at b: slopes that `floor` made smaller leave them sound.
        # Each depends on one end only: the 0 hands on a NaN of the other.
        nothing = rise.detach() * 0
        low = torch.addcmul(first, rising, q, value=-1) + nothing
        high = torch.addcmul(last, falling, b, value=-1) + nothing
        if _is(self.outer, 0):
            return Lines(rising, low, falling, high)
        outer, one = _tensor(self.outer, lower), _tensor(1.0, lower)
        rest = one - outer
        return Lines(torch.lerp(outer, one, rising), rest * low, torch.lerp(outer, one, falling), rest * high)


def is_convex_hinge(function: object) -> bool:
    """Tell whether a function is one convex kink with numbers as parameters, such as ReLU, leaky ReLU or |z|."""
    return bool(
        isinstance(function, Hinge)
        and not any(isinstance(one, Tensor) for one in (function.left, function.right, function.at))
        and function.left < function.right
    )


def relu() -> Hinge:
    """Return max(z, 0)."""
    return Hinge(0.0, 1.0)


def leaky_relu(negative_slope: float | int = 0.01) -> Hinge:
    """Return max(z, 0) + negative_slope * min(z, 0)."""
    return Hinge(negative_slope, 1.0)


def prelu(weight: Tensor) -> Hinge:
    """Return max(z, 0) + weight * min(z, 0), the weight a tensor that broadcasts against z, [C, 1, 1] for channels."""
    return Hinge(weight, 1.0)


def absolute() -> Hinge:
    """Return |z|; its "tight" lower line is 0 where the kink is inside, and its "adaptive" one is the longer side's."""
    return Hinge(-1.0, 1.0)


def clamp(low: Scalar | None = None, high: Scalar | None = None) -> PiecewiseLinear:
    """Return min(max(z, low), high), either end left out for None; lines as for a ReLU at each end.

    Raises:
        UsageError: no end is given, or low is above high.
    """
    if low is not None and high is not None:
        return Clip(low, high)
    if low is not None:
        return Hinge(0.0, 1.0, low)
    if high is not None:
        return Hinge(1.0, 0.0, high)
    raise UsageError("clamp needs a lower end, an upper end, or both.")


def hardtanh(low: float | int = -1.0, high: float | int = 1.0) -> Clip:
    """Return min(max(z, low), high)."""
    return Clip(low, high)


def relu6() -> Clip:
    """Return min(max(z, 0), 6)."""
    return Clip(0.0, 6.0)


def param_ramp(r: Scalar, eta: Scalar = 0.0) -> Clip:
    """Return eta * z below 0, z from 0 to r, and eta * z + (1 - eta) * r above (Lyu et al., 2021).

    Args:
        r: the right kinks, a tensor that broadcasts against z, at least 0 (kept above 1e-4 by whoever trains it).
        eta: the outer slope, from 0 to 1.

    Raises:
        UsageError: r is negative or eta out of range.
    """
    return Clip(0.0, r, eta)


def _extreme(pick: Callable[[Tensor, Tensor], Tensor], points: list[tuple[Tensor, Tensor]], slope: Tensor) -> Tensor:
    """Return the smallest or largest f(p) - slope * p."""
    return reduce(pick, (torch.addcmul(value, slope, point, value=-1) for point, value in points))


def _is(value: Scalar, number: int) -> bool:
    return not isinstance(value, Tensor) and value == number


def _all(condition: bool | Tensor) -> bool:
    return bool(condition.all()) if isinstance(condition, Tensor) else condition


def _like(value: Scalar, like: Tensor) -> Scalar:
    """Return a tensor in the dtype of ``like``, in which parameters are combined; a number as it is."""
    return value.to(like) if isinstance(value, Tensor) else value


def _tensor(value: Scalar, like: Tensor) -> Tensor:
    return torch.as_tensor(_like(value, like), dtype=like.dtype, device=like.device)


def _scaled(z: Tensor, factor: Scalar) -> Tensor:
    return z if _is(factor, 1) else z * factor


def _from_above(z: Tensor, end: Scalar) -> Tensor:
    """Return max(z, end); the backward passes of these forms are the cheapest."""
    if isinstance(end, Tensor):
        return torch.where(z < end, end.to(z), z)
    return torch.relu(z) if end == 0 else z.clamp_min(end)


def _from_below(z: Tensor, end: Scalar) -> Tensor:
    """Return min(z, end)."""
    return torch.where(z > end, end.to(z), z) if isinstance(end, Tensor) else z.clamp_max(end)
