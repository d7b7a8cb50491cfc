"""DeepFool: from one linearised decision boundary to the next."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from stalwart.attacks.base import Count
from stalwart.attacks.gaps import gaps
from stalwart.attacks.hyperplanes import Norm, steps_to_hyperplanes
from stalwart.attacks.minimal import MinimalAttack, drawn_in
from stalwart.attacks.oracle import Oracle
from stalwart.core.numbers import Number, require
from stalwart.sets import ThreatSet
from stalwart.sets.base import expand


@dataclass(frozen=True, kw_only=True)
class DeepFool(MinimalAttack):
    """Go to the nearest boundary of the linearised network, until the true one is crossed; l2 and linf.

        k = argmin over k != y of the least r with <grad z_k - grad z_y, r> = z_y - z_k;  x <- x_0 + (1 + overshoot) Σ r

    r is the least step inside the box (:mod:`stalwart.attacks.hyperplanes`), not one that is clipped afterwards as published,
    so that on a linear model the first one leads to the nearest point of the box. Samples that have crossed leave the batch.
    Then, which goes beyond the published algorithm, the boundary is linearised where it was crossed, and the nearest point of
    that plane to x_0 is taken where it is misclassified and nearer.
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
        norm = cast(Norm, within.name)
        z = cross(oracle, x, y, within, norm, samples, self.steps, self.overshoot, self.classes)
        for _ in range(self.refine):
            z, _ = drawn_in(oracle, x, z, y, within, samples, self.polish)
            gap, slope, _ = gaps(oracle, z, y, samples, 1)
            need = (slope[:, 0] * (z - x)).flatten(1).sum(1) + gap[:, 0]
            step = nearest_step(need[:, None].clamp_min(0), slope, x, within, norm)
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
    norm: Norm,
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


def nearest_step(gap: Tensor, slope: Tensor, z: Tensor, within: ThreatSet, norm: Norm) -> Tensor:
    """Return the least step [B, ...] from z inside the box that closes one of the gaps [B, C] of slopes [B, C, ...]."""
    change, size, short = steps_to_hyperplanes(norm, z.flatten(1), slope.flatten(2), gap, within.low, within.high)
    # A class that the linearised network cannot reach inside the box comes after all that it can, the nearest first.
    best = torch.where(short > 1e-4, 1e6 * (1 + short), size).argmin(1)
    return change[torch.arange(len(z), device=z.device), best].reshape(z.shape)
