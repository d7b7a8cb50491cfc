"""Planes below and above products, maxima and minima of two bounded operands."""

from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from stalwart.bounds.lines import Strategy, check_strategy, floor

_ROUNDINGS = 16
"""An intercept is the result of at most five roundings of the terms that :func:`outward` counts."""

Ends = Float[Tensor, " *shape"]


@dataclass(frozen=True, eq=False)
class Planes:
    """lower_x x + lower_y y + lower_intercept <= f(x, y) <= upper_x x + upper_y y + upper_intercept on a box, elementwise."""

    lower_x: Tensor
    lower_y: Tensor
    lower_intercept: Tensor
    upper_x: Tensor
    upper_y: Tensor
    upper_intercept: Tensor


def product_interval(x_lower: Ends, x_upper: Ends, y_lower: Ends, y_upper: Ends) -> tuple[Tensor, Tensor]:
    """Return the extremes of x y, which are at corners."""
    corners = _corners(x_lower, x_upper, y_lower, y_upper)
    values = [x * y for x, y in corners]
    return reduce(torch.minimum, values), reduce(torch.maximum, values)


def product_planes(
    x_lower: Ends, x_upper: Ends, y_lower: Ends, y_upper: Ends, strategy: Strategy = "adaptive"
) -> Planes:
    """Return planes below and above x y (McCormick, 1976).

    Two planes below touch x y on two sides of the box each: one where x = l or y = l, the other where x = u or y = u. Their
    mean gap is the same, and so is that of every mean of the two. "adaptive" takes the one whose smallest value is larger;
    "tight" a mean that nowhere falls below the smallest product, which always exists; "one" and "same-slope" are "adaptive".
    """
    check_strategy(strategy)
    if strategy == "constant":
        return _constant(*product_interval(x_lower, x_upper, y_lower, y_upper))
    lower_x, lower_y = _product_slopes(x_lower, x_upper, y_lower, y_upper, strategy)
    # x y is minus the product of -x and y.
    mirrored_x, mirrored_y = _product_slopes(-x_upper, -x_lower, y_lower, y_upper, strategy)
    upper_x, upper_y = mirrored_x, -mirrored_y
    corners = _corners(x_lower, x_upper, y_lower, y_upper)
    return Planes(
        lower_x,
        lower_y,
        reduce(torch.minimum, (x * y - lower_x * x - lower_y * y for x, y in corners)),
        upper_x,
        upper_y,
        reduce(torch.maximum, (x * y - upper_x * x - upper_y * y for x, y in corners)),
    )


def maximum_interval(x_lower: Ends, x_upper: Ends, y_lower: Ends, y_upper: Ends) -> tuple[Tensor, Tensor]:
    """Return max of the lower ends and max of the upper ends."""
    return torch.maximum(x_lower, y_lower), torch.maximum(x_upper, y_upper)


def maximum_planes(
    x_lower: Ends, x_upper: Ends, y_lower: Ends, y_upper: Ends, strategy: Strategy = "adaptive"
) -> Planes:
    """Return planes below and above max(x, y).

    Below, one of the operands: the one with the larger lower end ("tight"), or with the larger midpoint. Above, the plane that
    touches in the corners (u, u), (u, l) and (l, u), which stays below the largest value; the other plane of the concave hull
    has the same mean gap and does not.
    """
    check_strategy(strategy)
    if strategy == "constant":
        return _constant(*maximum_interval(x_lower, x_upper, y_lower, y_upper))
    if strategy == "tight":
        first = x_lower >= y_lower
    else:
        first = x_lower + x_upper >= y_lower + y_upper
    lower_x = first.to(x_lower)
    upper_x, upper_y = _chord(x_lower, x_upper, y_upper), _chord(y_lower, y_upper, x_upper)
    corners = _corners(x_lower, x_upper, y_lower, y_upper)
    # The maximum of a convex function is at a corner. The sum with 0 hands on NaN.
    above = reduce(torch.maximum, (torch.maximum(x, y) - upper_x * x - upper_y * y for x, y in corners))
    return Planes(lower_x, 1 - lower_x, above.detach() * 0, upper_x, upper_y, above)


def minimum_interval(x_lower: Ends, x_upper: Ends, y_lower: Ends, y_upper: Ends) -> tuple[Tensor, Tensor]:
    """Return min of the lower ends and min of the upper ends."""
    return torch.minimum(x_lower, y_lower), torch.minimum(x_upper, y_upper)


def minimum_planes(
    x_lower: Ends, x_upper: Ends, y_lower: Ends, y_upper: Ends, strategy: Strategy = "adaptive"
) -> Planes:
    """Return planes below and above min(x, y) = -max(-x, -y); see :func:`maximum_planes`."""
    found = maximum_planes(-x_upper, -x_lower, -y_upper, -y_lower, strategy)
    return Planes(
        found.upper_x,
        found.upper_y,
        -found.upper_intercept,
        found.lower_x,
        found.lower_y,
        -found.lower_intercept,
    )


def outward(planes: Planes, x_lower: Tensor, x_upper: Tensor, y_lower: Tensor, y_upper: Tensor) -> Planes:
    """Return the planes moved apart by 16 units in the last place of every term that enters them."""
    x = torch.maximum(x_lower.abs(), x_upper.abs()).detach()
    y = torch.maximum(y_lower.abs(), y_upper.abs()).detach()
    info = torch.finfo(x.dtype)

    def pad(slope_x: Tensor, slope_y: Tensor, intercept: Tensor) -> Tensor:
        terms = x * slope_x.detach().abs() + y * slope_y.detach().abs() + intercept.detach().abs()
        return _ROUNDINGS * (info.eps * terms + info.tiny)

    below = planes.lower_x, planes.lower_y, planes.lower_intercept
    above = planes.upper_x, planes.upper_y, planes.upper_intercept
    return Planes(*below[:2], below[2] - pad(*below), *above[:2], above[2] + pad(*above))


def _product_slopes(
    x_lower: Tensor, x_upper: Tensor, y_lower: Tensor, y_upper: Tensor, strategy: Strategy
) -> tuple[Tensor, Tensor]:
    """Return the slopes of a mean of the two planes below x y: ``share`` of the one at the lower ends."""
    low, high = x_lower * y_lower, x_upper * y_upper
    if strategy != "tight":
        share = (high >= low).to(x_lower)
    else:
        # The mean is exact in the corners (l, u), (u, l); below x y by (1 - share) area in (l, l), by share * area in (u, u).
        with torch.no_grad():
            area = (x_upper - x_lower) * (y_upper - y_lower)
            smallest = product_interval(x_lower, x_upper, y_lower, y_upper)[0]
            divisor = area.clamp_min(floor(area))
            most, least = (high - smallest) / divisor, 1 - (low - smallest) / divisor
            share = torch.where(most >= 1, 1, torch.where(least <= 0, 0, ((most + least) / 2).clamp(0, 1)))
    return torch.lerp(y_upper, y_lower, share), torch.lerp(x_upper, x_lower, share)


def _chord(lower: Tensor, upper: Tensor, other: Tensor) -> Tensor:
    """Return the slope of the chord of max(z, other) over [l, u]."""
    over, under = torch.relu(upper - other), torch.relu(other - lower)
    return over / (over + under).clamp_min(floor(lower))


def _constant(low: Tensor, high: Tensor) -> Planes:
    zero = torch.zeros_like(low)
    return Planes(zero, zero, low, zero, zero, high)


def _corners(x_lower: Tensor, x_upper: Tensor, y_lower: Tensor, y_upper: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(x, y) for x in (x_lower, x_upper) for y in (y_lower, y_upper)]
