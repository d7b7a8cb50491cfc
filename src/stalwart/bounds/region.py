"""The set of inputs that bounds hold for: a box, and a ball inside it where the norm is not that of the box."""

from collections.abc import Callable
from dataclasses import dataclass, field

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
    _made: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @staticmethod
    def around(x: Tensor, within: ThreatSet) -> "Region":
        """Return the region of a threat set around inputs x [B, ...]."""
        box = Interval(*within.bounds(x))
        return Region(box) if isinstance(within, Linf | Box) else Region(box, x, within)

    def add_minimum(self, patches: Patches, constant: Tensor) -> None:
        """Add the smallest values to ``constant`` [B, S]."""
        patches.minimum(*self._kept(self._channels_last, len(self.box.lower)), constant)

    def minimum(self, coefficients: Tensor) -> Tensor:
        """Return the smallest value [B, S] that <coefficients, z> takes, coefficients [B, S, ...]."""
        batch = len(coefficients)
        centre, reach = self._kept(self._expanded, batch)
        low = box_minimum(coefficients, centre, reach)
        if self.within is None or self.x is None:
            return low
        rows = coefficients.shape[1]
        index = torch.arange(batch, device=coefficients.device).repeat_interleave(rows)
        ball = -self.within.select(index).support(self.x[index], -coefficients.flatten(0, 1))
        return torch.maximum(low, ball.unflatten(0, (batch, rows)))

    def _expanded(self, batch: int) -> tuple[Tensor, Tensor]:
        shape = (batch, *self.box.lower.shape[1:])
        return self.box.centre.expand(shape).contiguous(), self.box.reach.expand(shape).contiguous()

    def _channels_last(self, batch: int) -> tuple[Tensor, Tensor]:
        return self.box.centre.movedim(1, -1).contiguous(), self.box.reach.movedim(1, -1).contiguous()

    def _kept(self, make: Callable[[int], tuple[Tensor, Tensor]], batch: int) -> tuple[Tensor, Tensor]:
        """Return centre and reach as ``make`` gives them, made once: every walk ends here. With gradients, anew."""
        if self.box.lower.requires_grad or self.box.upper.requires_grad:
            return make(batch)
        held = self._made.get(make.__name__)
        if held is None or len(held[0]) != batch:
            held = self._made[make.__name__] = make(batch)
        return held
