"""DeepFool: from one linearised decision boundary to the next."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.attacks.base import Count
from stalwart.attacks.gaps import gaps
from stalwart.attacks.hyperplane import least_change
from stalwart.attacks.minimal import MinimalAttack, drawn_in
from stalwart.attacks.nearest_class import ORDER
from stalwart.attacks.oracle import Oracle
from stalwart.core.numbers import Number, require
from stalwart.sets import ThreatSet
from stalwart.sets.base import expand


@dataclass(frozen=True, kw_only=True)
class DeepFool(MinimalAttack):
    """Go to the nearest boundary of the linearised network, until the true one is crossed; l2 and linf.

        k = argmin over k != y of the least r with <grad z_k - grad z_y, r> = z_y - z_k;  x <- x_0 + (1 + overshoot) Σ r

    r is the least step inside the box (:func:`least_change`), not a step that is clipped afterwards as published, so that on a
    linear model the first one leads to the nearest point of the box. Samples that have crossed leave the batch. Then, which
    goes beyond the published algorithm, the boundary is linearised where it was crossed, and the nearest point of that plane to
    x_0 is taken where it is misclassified and nearer.
    Source: Moosavi-Dezfooli, Fawzi, Frossard, CVPR 2016 (arXiv 1511.04599), algorithm 2 and equations 10 and 11.

    Attributes:
        steps: linearisations, at least 1.
        overshoot: how much farther than the boundary a step goes, a share of the whole change, at least 0.
        classes: how many of the likeliest other classes count.
        refine: how often the crossed boundary is linearised again, at least 0.
    """

    steps: Count = 50
    overshoot: Number = 0.02
    classes: Count = 10
    refine: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "classes"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}.")
        require(self.refine >= 0, f"refine must be at least 0, got {self.refine}.")
        require(self.overshoot >= 0, f"overshoot must be at least 0, got {self.overshoot}.")

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, samples: Tensor, seed: int) -> Tensor:
        """Return where each sample first crossed the boundary, or the nearer point of the plane there."""
        z = cross(oracle, x, y, within, within.name, samples, self.steps, self.overshoot, self.classes)
        for _ in range(self.refine):
            z, _ = drawn_in(oracle, x, z, y, within, samples, self.polish)
            gap, slope, _ = gaps(oracle, z, y, samples, 1)
            need = (slope[:, 0] * (z - x)).flatten(1).sum(1) + gap[:, 0]
            step = nearest_step(need[:, None].clamp_min(0), slope, x, within, within.name)
            closer = (x + (1 + self.overshoot) * step).clamp(within.low, within.high)
            closer, wrong = drawn_in(oracle, x, closer, y, within, samples, self.polish)
            better = wrong & (within.distance(x, closer) < within.distance(x, z))
            z = torch.where(expand(better, x).bool(), closer, z)  # type: ignore[union-attr]
        return z


def cross(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    within: ThreatSet,
    norm: str,
    samples: Tensor,
    steps: int,
    overshoot: float,
    classes: int,
) -> Tensor:
    """Return the first misclassified point [B, ...] on DeepFool's way in a norm, or the last point of the way.

    Args:
        oracle: the model.
        x: where the ways start [B, ...].
        y: labels [B].
        within: the set whose box [low, high] holds.
        norm: "linf", "l2" or "l1".
        samples: which samples of the oracle's batch these are [B].
        steps, overshoot, classes: as in :class:`DeepFool`.
    """
    found, index = x.clone(), torch.arange(len(x), device=x.device)
    start, z, total = x, x, torch.zeros_like(x)
    for _ in range(steps):
        gap, slope, _ = gaps(oracle, z, y[index], samples[index], classes)
        left = (gap > 0).all(1).nonzero()[:, 0]
        if not len(left):
            return found
        index, start, z, total = index[left], start[left], z[left], total[left]
        step = nearest_step(gap[left], slope[left], z, within, norm)
        total = total + step
        z = (start + (1 + overshoot) * total).clamp(within.low, within.high)
        found[index] = z
    return found


def nearest_step(gap: Tensor, slope: Tensor, z: Tensor, within: ThreatSet, norm: str) -> Tensor:
    """Return the least step [B, ...] from z inside the box that closes one of the gaps [B, C] of slopes [B, C, ...]."""
    classes = gap.shape[1]
    flat = z.flatten(1).repeat_interleave(classes, 0)
    change, missing = least_change(
        gap.flatten(), slope.flatten(2).flatten(0, 1), within.low - flat, within.high - flat, norm
    )
    size = change.norm(p=ORDER[norm], dim=1).reshape(gap.shape)
    # A class that the linearised network cannot reach inside the box comes after all that it can, the nearest first.
    short = (missing.reshape(gap.shape) / gap.clamp_min(torch.finfo(gap.dtype).tiny)).clamp(0, 1)
    rank = torch.where(short > 1e-4, 1e6 * (1 + short), size)
    best = rank.argmin(1)
    rows = torch.arange(len(z), device=z.device)
    return change.reshape(len(z), classes, -1)[rows, best].reshape(z.shape)
