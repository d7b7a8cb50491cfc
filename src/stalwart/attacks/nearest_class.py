"""A margin in units of distance: the class whose boundary is nearest leads, not the one whose logit is largest."""

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from stalwart.attacks.gaps import gaps
from stalwart.attacks.hyperplanes import Norm, steps_to_hyperplanes
from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.sets import L0, ThreatSet


@dataclass(frozen=True, eq=False)
class DistanceGoal(Goal):
    """max_{j != y} (z_j - z_y) / s_j: the margin with the logit differences in units of distance; its sign is the margin's.

    Attributes:
        scale: s [B, K], how much a logit difference grows with each unit of distance.
    """

    scale: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the scaled margin [..., B] of logits [..., B, K]."""
        assert self.scale is not None
        own = logits.gather(-1, self.y.expand(logits.shape[:-1])[..., None])
        lead = (logits - own) / self.scale
        return lead.masked_fill(F.one_hot(self.y, logits.shape[-1]).bool(), -torch.inf).amax(-1)

    def select(self, index: Tensor | slice) -> "DistanceGoal":
        """Return the goal of some of the samples."""
        return replace(self, y=self.y[index], scale=None if self.scale is None else self.scale[index])


def distance_goal(
    oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, samples: Tensor, classes: int
) -> DistanceGoal:
    """Return the goal with s_j = (z_y - z_j) / d_j, d_j the distance of the linearised boundary of class j inside the box.

    On a linear model the nearest class then leads at x and all the way to its boundary where no face of the box binds. The
    ``classes`` likeliest classes are measured, one pass backward each; others count as the farthest of these. For L0 the
    distances are those in l1.
    """
    gap, slope, likeliest = gaps(oracle, x, y, samples, classes)
    norm = cast(Norm, "l1" if isinstance(within, L0) else within.name)
    ahead = gap.clamp_min(0)  # fresh draws of a randomised model may have caught up
    _, distance, short = steps_to_hyperplanes(norm, x.flatten(1), slope.flatten(2), ahead, within.low, within.high)
    # A class that the linearised network does not reach inside the box is as much farther as it falls short.
    distance = distance / (1 - short).clamp_min(1e-6).square()
    rate = gap / distance.clamp_min(1e-30)
    rate = torch.nan_to_num(rate, posinf=1.0).clamp_min(1e-12)
    scale = rate.amin(1, keepdim=True).expand(-1, oracle.classes).clone()
    return DistanceGoal("margin", y, None, scale.scatter(1, likeliest, rate))
