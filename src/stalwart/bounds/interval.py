"""Lower and upper ends of a tensor's values."""

import torch
from torch import Tensor


class Interval:
    """Ends ``lower`` and ``upper`` of one shape, [B, ...] for values that depend on the input.

    Products need ``centre`` and ``reach`` instead: of an interval that was made of one pair the other is computed when asked
    for, and kept unless it has gradients, whose graph could be passed once only.

    Attributes:
        is_around: whether it was made of centre and reach.
    """

    __slots__ = ("_centre", "_lower", "_reach", "_upper", "is_around")

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        self._lower: Tensor | None = lower
        self._upper: Tensor | None = upper
        self._centre: Tensor | None = None
        self._reach: Tensor | None = None
        self.is_around = False

    @staticmethod
    def around(centre: Tensor, reach: Tensor) -> "Interval":
        """Return [centre - reach, centre + reach]."""
        found = Interval.__new__(Interval)
        found._lower = found._upper = None
        found._centre, found._reach, found.is_around = centre, reach, True
        return found

    @property
    def lower(self) -> Tensor:
        """The lower end."""
        if self._lower is not None:
            return self._lower
        found = self.centre - self.reach
        self._lower = None if self._has_gradients else found
        return found

    @property
    def upper(self) -> Tensor:
        """The upper end."""
        if self._upper is not None:
            return self._upper
        found = self.centre + self.reach
        self._upper = None if self._has_gradients else found
        return found

    @property
    def centre(self) -> Tensor:
        """(lower + upper) / 2."""
        if self._centre is not None:
            return self._centre
        found = (self.lower + self.upper) / 2
        self._centre = None if self._has_gradients else found
        return found

    @property
    def reach(self) -> Tensor:
        """(upper - lower) / 2, the distance from the centre to the ends."""
        if self._reach is not None:
            return self._reach
        found = (self.upper - self.lower) / 2
        self._reach = None if self._has_gradients else found
        return found

    @property
    def _has_gradients(self) -> bool:
        made = (self._centre, self._reach) if self.is_around else (self._lower, self._upper)
        return any(one is not None and one.requires_grad for one in made)

    def intersect(self, other: "Interval") -> "Interval":
        """Return the larger lower and the smaller upper end; where two sound bounds cross by rounding, their midpoint."""
        return Interval(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))
