"""A margin in units of distance: the class whose boundary is nearest leads, not the one whose logit is largest."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from stalwart.attacks.gaps import gaps
from stalwart.attacks.hyperplane import least_change
from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.sets import ThreatSet

ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}


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
    norm, count = within.name if within.name in ORDER else "l1", gap.shape[1]
    flat = x.flatten(1).repeat_interleave(count, 0)
    change, left = least_change(
        gap.flatten(), slope.flatten(2).flatten(0, 1), within.low - flat, within.high - flat, norm
    )
    reached = ((gap.flatten() - left) / gap.flatten().clamp_min(1e-30)).clamp(0, 1)
    # A class that the linearised network does not reach inside the box is as much farther as it falls short.
    distance = change.norm(p=ORDER[norm], dim=1) / reached.clamp_min(1e-6).square()
    rate = (gap.flatten() / distance.clamp_min(1e-30)).reshape(gap.shape)
    rate = torch.nan_to_num(rate, posinf=1.0).clamp_min(1e-12)
    scale = rate.amin(1, keepdim=True).expand(-1, oracle.classes).clone()
    return DistanceGoal("margin", y, None, scale.scatter(1, likeliest, rate))
