"""exp, log, softplus and ELU."""

import math
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from stalwart.bounds.curves.bent import Bent, Part
from stalwart.bounds.curves.curve import refuse
from stalwart.bounds.lines import Strategy, floor
from stalwart.core.numbers import require


class Exp(Bent):
    """exp(z)."""

    codomain = (0.0, math.inf)

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return torch.exp(z)

    def derivative(self, z: Tensor) -> Tensor:
        """Return exp(z)."""
        return torch.exp(z)

    def stationary(self, slope: Tensor, low: Tensor, high: Tensor, part: Part) -> Tensor:
        """Return log(slope)."""
        return slope.clamp_min(0).log()


class Log(Bent):
    """The natural logarithm, on intervals above 0."""

    convex_from = math.inf

    def check(self, lower: Tensor, upper: Tensor) -> None:
        """Refuse intervals that hold 0 or less."""
        refuse(lower <= 0, "log needs intervals above 0", lower, upper)

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return torch.log(z)

    def derivative(self, z: Tensor) -> Tensor:
        """Return 1 / z."""
        return z.reciprocal()

    def scale(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return l."""
        return lower

    def stationary(self, slope: Tensor, low: Tensor, high: Tensor, part: Part) -> Tensor:
        """Return 1 / slope."""
        return slope.clamp_min(0).reciprocal()


@dataclass(frozen=True, eq=False)
class Softplus(Bent):
    """log(1 + exp(beta z)) / beta, and z itself where beta z > threshold, as torch computes it.

    The function falls by log(1 + exp(-threshold)) / beta at the threshold, which enclosures across it take into account.

    Attributes:
        beta: sharpness, positive.
        threshold: where the identity begins, in units of 1 / beta.

    Raises:
        UsageError: beta is not positive.
    """

    beta: float | int = 1.0
    threshold: float | int = 20.0
    codomain = (0.0, math.inf)

    def __post_init__(self) -> None:
        require(self.beta > 0, f"softplus needs a positive beta, got {self.beta}.")

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return F.softplus(z, self.beta, self.threshold)

    def derivative(self, z: Tensor) -> Tensor:
        """Return sigmoid(beta z)."""
        return torch.sigmoid(self.beta * z)

    def magnitude(self, z: Tensor) -> Tensor:
        """Return f(z) (1 + beta |min(z, 0)|): in the left tail the rounding of beta z changes f by as many units."""
        return self.value(z) * (1 - self.beta * z.clamp_max(0))

    def scale(self, lower: Tensor, upper: Tensor) -> float:
        """Return 1 / beta."""
        return 1 / self.beta

    def stationary(self, slope: Tensor, low: Tensor, high: Tensor, part: Part) -> Tensor:
        """Return logit(slope) / beta."""
        return torch.logit(slope.clamp(0, 1)) / self.beta

    def slopes(self, lower: Tensor, upper: Tensor, strategy: Strategy) -> tuple[Tensor, Tensor]:
        """Return the slopes of a convex function, 1 beyond the threshold."""
        below, above = super().slopes(lower, upper, strategy)
        linear = self._beyond(lower)
        return torch.where(linear, 1, below), torch.where(linear, 1, above)

    def lowest(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        """Return the minimum over the ends and the stationary point, less the fall where it is between them."""
        return super().lowest(lower, upper, slope) - self._fall(lower, upper)

    def highest(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        """Return the maximum over the ends, plus the fall where it is between them."""
        return super().highest(lower, upper, slope) + self._fall(lower, upper)

    def interval(
        self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]
    ) -> tuple[Float[Tensor, " *shape"], Float[Tensor, " *shape"]]:
        """Return f(l) and f(u), rounded outward and moved apart by the fall where it is between them."""
        low, high = super().interval(lower, upper)
        fall = self._fall(lower, upper)
        return (low - fall).clamp_min(0), high + fall

    def linear_on(self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]) -> Bool[Tensor, " *shape"]:
        """Return where [l, u] is one point or beyond the threshold."""
        return (lower == upper) | self._beyond(lower)

    def _beyond(self, z: Tensor) -> Tensor:
        return self.beta * z > self.threshold

    def _fall(self, lower: Tensor, upper: Tensor) -> Tensor:
        across = self._beyond(upper) & ~self._beyond(lower)
        return across.to(lower) * (math.log1p(math.exp(-self.threshold)) / self.beta)


@dataclass(frozen=True, eq=False)
class ELU(Bent):
    """z above 0, alpha (exp(z) - 1) below (Clevert et al., 2016, arXiv 1511.07289).

    The kink at 0 is convex for alpha <= 1; else the function is convex up to 0 and the kink belongs to the concave part.

    Attributes:
        alpha: minus the limit at -inf, positive.

    Raises:
        UsageError: alpha is not positive.
    """

    alpha: float | int = 1.0
    convex_to = 0.0
    reach = 45.0

    def __post_init__(self) -> None:
        require(self.alpha > 0, f"elu needs a positive alpha, got {self.alpha}.")

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return F.elu(z, self.alpha)

    def derivative(self, z: Tensor) -> Tensor:
        """Return alpha exp(z) up to 0, where it is the derivative from the left, and 1 above."""
        return torch.where(z > 0, 1, self.alpha * torch.exp(z.clamp_max(0)))

    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return f'(z), and f''(z) for z up to 0, which is the same there."""
        first = self.derivative(z)
        return first, first

    def stationary(self, slope: Tensor, low: Tensor, high: Tensor, part: Part) -> Tensor:
        """Return log(slope / alpha), in the convex part."""
        return (slope.clamp_min(0) / self.alpha).log()

    def touch(self, end: Tensor, low: Tensor, high: Tensor, part: Part, from_left: bool) -> Tensor:
        """Return the kink or u for lines through l that are steeper than 1 or not; solve the equation in the convex part."""
        if part == "right":
            return torch.where(self.value(end) < end, low, high)
        return super().touch(end, low, high, part, from_left)

    def chord(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return the mean of the chord up to 0 and of 1, weighted by the lengths on either side."""
        over, under = torch.relu(upper), torch.relu(-lower)
        share = over / (over + under).clamp_min(floor(lower))
        before = super().chord(lower.clamp_max(0), upper.clamp_max(0))
        return before + (1 - before) * share

    def slopes(self, lower: Tensor, upper: Tensor, strategy: Strategy) -> tuple[Tensor, Tensor]:
        """Return the slopes of the hulls, 1 above 0."""
        if strategy in ("adaptive", "one") and self.alpha <= 1:
            below, above = self.derivative(lower / 2 + upper / 2), self.chord(lower, upper)
        else:
            below, above = super().slopes(lower, upper, strategy)
        linear = lower >= 0
        return torch.where(linear, 1, below), torch.where(linear, 1, above)

    def highest(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        """Return the maximum over the ends and 0, since f is convex before 0 and linear behind."""
        kink = torch.maximum(lower, upper.clamp_max(0))
        heights = (self._above(z, slope) for z in (lower, kink, upper))
        return reduce(torch.maximum, heights)

    def linear_on(self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]) -> Bool[Tensor, " *shape"]:
        """Return where [l, u] is one point or above 0."""
        return (lower == upper) | (lower >= 0)
