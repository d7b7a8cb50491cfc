"""A scalar function known only to lie between two others, because a parameter of it ranges over an interval."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stalwart.bounds.elementwise import Elementwise
from stalwart.bounds.lines import Lines, Strategy


@dataclass(frozen=True, eq=False)
class Envelope(Elementwise):
    """Any f with below <= f <= above everywhere.

    Attributes:
        below: the lower function.
        above: the upper function.
    """

    below: Elementwise
    above: Elementwise

    def value(self, z: Tensor) -> Tensor:
        """Return the lower function's value."""
        return self.below.value(z)

    def interval(
        self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]
    ) -> tuple[Float[Tensor, " *shape"], Float[Tensor, " *shape"]]:
        """Return the smallest value of the lower and the largest of the upper function."""
        return self.below.interval(lower, upper)[0], self.above.interval(lower, upper)[1]

    def lines(self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"], strategy: Strategy) -> Lines:
        """Return the line below the lower and the line above the upper function."""
        return _outer(self.below.lines(lower, upper, strategy), self.above.lines(lower, upper, strategy))

    def lines_with_slope(
        self,
        lower: Float[Tensor, " *shape"],
        upper: Float[Tensor, " *shape"],
        lower_slope: Tensor,
        upper_slope: Tensor | None = None,
    ) -> Lines:
        """Return lines of given slopes; see :meth:`Elementwise.lines_with_slope`."""
        slopes = (lower_slope, upper_slope)
        return _outer(
            self.below.lines_with_slope(lower, upper, *slopes), self.above.lines_with_slope(lower, upper, *slopes)
        )

    def linear_on(self, lower: Float[Tensor, " *shape"], upper: Float[Tensor, " *shape"]) -> Bool[Tensor, " *shape"]:
        """Return false everywhere: the functions may lie apart, and less so on a smaller interval."""
        return torch.zeros_like(lower, dtype=torch.bool)


def _outer(below: Lines, above: Lines) -> Lines:
    return Lines(below.lower_slope, below.lower_intercept, above.upper_slope, above.upper_intercept)
