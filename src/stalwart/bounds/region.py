"""The set of inputs that bounds hold for: a box, and a ball inside it where the norm is not that of the box."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.bounds.interval import Interval
from stalwart.bounds.patches import Patches
from stalwart.bounds.rows import box_minimum
from stalwart.sets import Box, Linf, ThreatSet


@dataclass(frozen=True, eq=False)
class Region:
    """Inputs in ``box``, and in the threat set ``within`` around ``x`` if there is one that is not the box itself."""

    box: Interval
    x: Tensor | None = None
    within: ThreatSet | None = None

    @staticmethod
    def around(x: Tensor, within: ThreatSet) -> "Region":
        """Return the region of a threat set around inputs x [B, ...]."""
        box = Interval(*within.bounds(x))
        return Region(box) if isinstance(within, Linf | Box) else Region(box, x, within)

    def add_minimum(self, patches: Patches, constant: Tensor) -> None:
        """Add the smallest values to ``constant`` [B, S]."""
        patches.minimum(Interval(self.box.lower.movedim(1, -1), self.box.upper.movedim(1, -1)), constant)

    def minimum(self, coefficients: Tensor) -> Tensor:
        """Return the smallest value [B, S] that <coefficients, z> takes, coefficients [B, S, ...]."""
        shape = (len(coefficients), *self.box.lower.shape[1:])
        centre, reach = (part.expand(shape) for part in (self.box.centre, self.box.reach))
        low = box_minimum(coefficients, centre, reach)
        if self.within is None or self.x is None:
            return low
        batch, rows = coefficients.shape[:2]
        index = torch.arange(batch, device=coefficients.device).repeat_interleave(rows)
        ball = -self.within.select(index).support(self.x[index], -coefficients.flatten(0, 1))
        return torch.maximum(low, ball.unflatten(0, (batch, rows)))
