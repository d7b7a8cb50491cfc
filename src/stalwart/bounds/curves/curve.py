"""What curves share: lines of any slope, with intercepts that are rounded outward."""

import abc

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stalwart.bounds.elementwise import Elementwise
from stalwart.bounds.lines import Lines, Strategy, check_strategy, constant_lines
from stalwart.core.errors import InputError

_ULPS = 8
"""Units in the last place that a value may be off: below 2 for torch's functions on the CPU; the rest is for other devices."""


class Curve(Elementwise):
    """A function whose lines come from slopes and from sound extremes of f(z) - slope * z."""

    @abc.abstractmethod
    def slopes(self, lower: Tensor, upper: Tensor, strategy: Strategy) -> tuple[Tensor, Tensor]:
        """Return the slopes of the lower and the upper line, for every strategy but "constant"."""

    @abc.abstractmethod
    def lowest(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        """Return a lower bound of f(z) - slope * z on [l, u] that is exact but for rounding."""

    @abc.abstractmethod
    def highest(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        """Return an upper bound of f(z) - slope * z on [l, u] that is exact but for rounding."""

    def check(self, lower: Tensor, upper: Tensor) -> None:
        """Refuse intervals that leave the domain of f.

        Raises:
            InputError: the message names the first bad interval.
        """

    def magnitude(self, z: Tensor) -> Tensor:
        """Return the size of the terms that make up f(z), of which rounding errors are fractions."""
        return self.value(z).abs()

    def lines(self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"], strategy: Strategy) -> Lines:
        """Return lines that touch f, rounded outward.

        Raises:
            InputError: an interval leaves the domain of f.
            UsageError: an unknown strategy.
        """
        check_strategy(strategy)
        if strategy == "constant":
            return constant_lines(*self.interval(lower, upper))
        self.check(lower, upper)
        return self._through(lower, upper, *self.slopes(lower, upper, strategy))

    def lines_with_slope(
        self,
        lower: Float[Tensor, " *shape"],
        upper: Float[Tensor, " *shape"],
        lower_slope: Tensor,
        upper_slope: Tensor | None = None,
    ) -> Lines:
        """Return lines of given slopes; see :meth:`Elementwise.lines_with_slope`."""
        self.check(lower, upper)
        usual, settled = self.slopes(lower, upper, "adaptive"), self.linear_on(lower, upper)
        below = torch.where(settled, usual[0], lower_slope)
        above = usual[1] if upper_slope is None else torch.where(settled, usual[1], upper_slope)
        return self._through(lower, upper, below, above)

    def linear_on(self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]) -> Bool[Tensor, " *shape"]:
        """Return where l = u."""
        return lower == upper

    def _through(self, lower: Tensor, upper: Tensor, below: Tensor, above: Tensor) -> Lines:
        return Lines(
            below,
            self.lowest(lower, upper, below) - self._pad(lower, upper, below),
            above,
            self.highest(lower, upper, above) + self._pad(lower, upper, above),
        )

    def _pad(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        size = torch.maximum(self.magnitude(lower), self.magnitude(upper))
        return rounding(size + slope.abs() * torch.maximum(lower.abs(), upper.abs()))


def refuse(bad: Tensor, what: str, lower: Tensor, upper: Tensor) -> None:
    """Raise :class:`InputError` with the sentence ``what`` and the first interval where ``bad`` is true, if there is one."""
    if bad.any():
        first = tuple(int(place) for place in bad.nonzero()[0])
        raise InputError(
            f"{what}, but entry {list(first)} ranges over [{lower[first].item():.6g}, {upper[first].item():.6g}]. "
            "Bound a smaller set, or change the model so that this operand stays away from there."
        )


def rounding(size: Tensor) -> Tensor:
    """Return what terms of this size may be off, a constant for differentiation."""
    info = torch.finfo(size.dtype)
    return (_ULPS * info.eps * size + info.tiny).detach()
