"""HopSkipJump: the nearest point by decisions alone."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.attacks.base import Count
from stalwart.attacks.minimal import MinimalAttack, drawn_in, misread
from stalwart.attacks.oracle import Oracle
from stalwart.core.numbers import require
from stalwart.core.random import generator, normal, uniform
from stalwart.sets import L2, Linf, ThreatSet
from stalwart.sets.base import expand

_ROWS = 1024
"""How many points pass the model together, at least one of each sample."""
_STARTS = 50


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(MinimalAttack):
    """Walk along the decision boundary towards the input, knowing only whether points are misclassified; l2 and linf.

    From a misclassified point z, where φ(z) = 1 if misclassified and -1 if not:

    1. z is drawn towards x to the boundary by halving;
    2. the boundary's normal is estimated as v = Σ_b (φ(z + δ u_b) - mean φ) u_b over random directions u_b, of which there are
       ``directions`` √t in iteration t;
    3. z goes along v (l2) or sign v (linf) by ||z - x|| / √t, halved until the point is misclassified, and is kept only if,
       drawn to the boundary, it comes nearer.

    The walk starts at a uniform point of the box, or at another input of the batch, that is misclassified; a sample that has
    none is given up. No gradient and no logit is used but for its sign; ``cost.forwards`` counts the queries.
    Source: Chen, Jordan, Wainwright, S&P 2020 (arXiv 1904.02144), algorithms 1 and 2.

    Attributes:
        queries: after which no further iteration begins, at least 1; one may spend more than is left.
        directions: random directions of the first iteration, at least 2.
        halvings: of each search for the boundary, at least 1.
    """

    queries: Count = 5000
    directions: Count = 100
    halvings: Count = 14
    kinds = (L2, Linf)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("queries", 1), ("directions", 2), ("halvings", 1)):
            require(getattr(self, name) >= least, f"{name} must be at least {least}, got {getattr(self, name)}.")

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, samples: Tensor, seed: int) -> Tensor:
        """Return the end of each sample's walk, and x where it found no start."""
        source = generator(seed, "walk", device=x.device)
        found = x.clone()
        z, started = _start(oracle, x, y, within, samples, source)
        index = started.nonzero()[:, 0]
        if not len(index):
            return found
        x, y, z, samples, within = x[index], y[index], z[index], samples[index], within.select(index)
        z, _ = drawn_in(oracle, x, z, y, within, samples, self.halvings)
        spent = _STARTS + self.halvings
        iteration = 1
        while spent < self.queries:
            count = int(self.directions * math.sqrt(iteration))
            size = within.distance(x, z).to(x.dtype)
            width = size / x[0].numel()
            if iteration == 1:
                width = torch.full_like(width, 0.1 * (within.high - within.low))
            normal_ = self._normal(oracle, z, y, within, samples, width, count, source)
            step = size / math.sqrt(iteration)
            moved, halved = self._hop(oracle, z, y, within, samples, within.steepest(normal_), step)
            closer, _ = drawn_in(oracle, x, moved, y, within, samples, self.halvings)
            better = within.distance(x, closer) < within.distance(x, z)
            z = torch.where(expand(better, x).bool(), closer, z)  # type: ignore[union-attr]
            spent += count + halved + self.halvings + 1
            iteration += 1
        found[index] = z
        return found

    def _normal(
        self,
        oracle: Oracle,
        z: Tensor,
        y: Tensor,
        within: ThreatSet,
        samples: Tensor,
        width: Tensor,
        count: int,
        source: torch.Generator,
    ) -> Tensor:
        """Return the estimated normal of the boundary at z [B, ...], towards what is misclassified."""
        total = torch.zeros_like(z)
        plain, sum_of_signs = torch.zeros_like(z), torch.zeros(len(z), dtype=z.dtype, device=z.device)
        at_once = max(_ROWS // len(z), 1)
        for first in range(0, count, at_once):
            rows = min(at_once, count - first)
            shape = (len(z), rows, *z.shape[1:])
            draws = normal(shape, source, z) if isinstance(within, L2) else 2 * uniform(shape, source, z) - 1
            length = draws.flatten(2).norm(dim=2).clamp_min(1e-12)
            reach = (width[:, None] / length).reshape(len(z), rows, *[1] * (z.dim() - 1))
            points = (z[:, None] + reach * draws).clamp(within.low, within.high)
            change = (points - z[:, None]) / expand(width, z)[:, None]  # type: ignore[index]
            wrong = misread_many(oracle, points, y, samples)
            sign = torch.where(wrong, 1.0, -1.0).to(z.dtype)
            total += (sign.reshape(len(z), rows, *[1] * (z.dim() - 1)) * change).sum(1)
            plain += change.sum(1)
            sum_of_signs += sign.sum(1)
        mean = sum_of_signs / count
        # Where all points agree, their mean says nothing against them.
        mean = torch.where(mean.abs() >= 1, 0.0, mean)
        return total - expand(mean, z) * plain

    @staticmethod
    def _hop(
        oracle: Oracle, z: Tensor, y: Tensor, within: ThreatSet, samples: Tensor, direction: Tensor, step: Tensor
    ) -> tuple[Tensor, int]:
        """Return z moved along the direction by a step that is halved until it ends misclassified, and the halvings."""
        moved, left = z.clone(), torch.arange(len(z), device=z.device)
        halved = 0
        while len(left) and halved < 15:
            points = (z[left] + expand(step[left], z[left]) * direction[left]).clamp(within.low, within.high)
            wrong = misread(oracle, points, y[left], samples[left])
            moved[left[wrong]] = points[wrong]
            left = left[~wrong]
            step, halved = step / 2, halved + 1
        return moved, halved


def misread_many(oracle: Oracle, points: Tensor, y: Tensor, samples: Tensor) -> Tensor:
    """Return which of several points a sample [B, N, ...] are misclassified, [B, N] bool, in one pass."""
    batch, rows = points.shape[:2]
    wrong = misread(oracle, points.flatten(0, 1), y.repeat_interleave(rows), samples.repeat_interleave(rows))
    return wrong.reshape(batch, rows)


def _start(
    oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, samples: Tensor, source: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return a misclassified point of the box for each sample, as near as luck has it, and where there is one [B]."""
    best, size = x.clone(), torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    for trial in range(_STARTS):
        if trial % 2:
            z = x.roll(1 + trial // 2, 0)
        else:
            z = within.low + (within.high - within.low) * uniform(x.shape, source, x)
        wrong = misread(oracle, z, y, samples)
        better = wrong & (within.distance(x, z) < size)
        best[better], size[better] = z[better], within.distance(x[better], z[better])
    return best, size.isfinite()
