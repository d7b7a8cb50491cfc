"""Lower and upper ends of a tensor's values."""

from collections.abc import Callable

import torch
from torch import Tensor


class Interval:
    """Ends ``lower`` and ``upper`` of one shape, [B, ...] for values that depend on the input.

    Products need ``centre`` and ``reach`` instead: of an interval that was made of one pair the other is computed when asked
    for, and kept unless it has gradients, whose graph could be passed once only.

    Attributes:
        is_around: whether it was made of centre and reach.
    """

    __slots__ = ("_parts", "is_around")

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        self._parts, self.is_around = {"lower": lower, "upper": upper}, False

    @staticmethod
    def around(centre: Tensor, reach: Tensor) -> "Interval":
        """Return [centre - reach, centre + reach]."""
        found = Interval.__new__(Interval)
        found._parts, found.is_around = {"centre": centre, "reach": reach}, True
        return found

    @property
    def lower(self) -> Tensor:
        """The lower end."""
        return self._part("lower", lambda: self.centre - self.reach)

    @property
    def upper(self) -> Tensor:
        """The upper end."""
        return self._part("upper", lambda: self.centre + self.reach)

    @property
    def centre(self) -> Tensor:
        """(lower + upper) / 2."""
        return self._part("centre", lambda: (self.lower + self.upper) / 2)

    @property
    def reach(self) -> Tensor:
        """(upper - lower) / 2, the distance from the centre to the ends."""
        return self._part("reach", lambda: (self.upper - self.lower) / 2)

    def _part(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        found = self._parts.get(name)
        if found is None:
            found = compute()
            if not any(part.requires_grad for part in self._parts.values()):
                self._parts[name] = found
        return found

    def intersect(self, other: "Interval") -> "Interval":
        """Return the larger lower and the smaller upper end; where two sound bounds cross by rounding, their midpoint."""
        return Interval(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))
