"""Carlini and Wagner's l2 attack."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.attacks.base import Count
from stalwart.attacks.ddn import annealed
from stalwart.attacks.minimal import MinimalAttack, Nearest
from stalwart.attacks.nearest_class import DistanceGoal, distance_goal
from stalwart.attacks.oracle import Oracle
from stalwart.core.numbers import Number, require
from stalwart.sets import L2, ThreatSet
from stalwart.sets.base import expand

_EDGE = 1 - 1e-3
_ROUNDS_TO_TEN = 10.0


@dataclass(frozen=True, kw_only=True)
class CW(MinimalAttack):
    """Adam on the squared l2 distance plus a penalty on the margin, over a variable that cannot leave the box.

        min over w of ||z - x||² + c max(-m(z), 0),  z = low + (high - low) (1 + tanh w) / 2

    m is the margin in units of distance (:mod:`stalwart.attacks.nearest_class`), so that c means the same for all models, where
    the authors take logits. c is multiplied by 10 until a round ends misclassified, then halved out between the last two; it
    does if any point of its last tenth is, since Adam's first steps may cross a near boundary whatever c is.
    Adam's step falls to a hundredth along a cosine in the second half. A sample leaves a round once a tenth of the steps
    has not lowered its value.
    Source: Carlini and Wagner, S&P 2017 (arXiv 1608.04644), section VI, the l2 attack.

    Attributes:
        steps: of Adam, for each c, at least 1.
        searches: how many c are tried, at least 1.
        rate: Adam's step size, in units of w, above 0.
        start: the first c, above 0, in data units; twice the distance is enough for a linear model.
        classes: how many of the likeliest classes are measured for the margin.
    """

    steps: Count = 500
    searches: Count = 9
    rate: Number = 0.01
    start: Number = 1.0
    classes: Count = 10
    kinds = (L2,)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "searches", "classes"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("rate", "start"):
            require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}.")

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, samples: Tensor, seed: int) -> Tensor:
        """Return the nearest misclassified point of all rounds."""
        nearest, goal = Nearest(x), distance_goal(oracle, x, y, within, samples, self.classes)
        c = torch.full((len(x),), self.start, dtype=torch.float64, device=x.device)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for _ in range(self.searches):
            found = self._descend(oracle, x, goal, within, samples, c, nearest)
            low, high = torch.where(found, low, c), torch.where(found, c, high)
            c = torch.where(high.isinf(), (_ROUNDS_TO_TEN * c).clamp_max(1e10), (low + high) / 2)
        return nearest.points

    def _descend(
        self,
        oracle: Oracle,
        x: Tensor,
        goal: DistanceGoal,
        within: ThreatSet,
        samples: Tensor,
        c: Tensor,
        nearest: Nearest,
    ) -> Tensor:
        """Run Adam for one c a sample [B], hand what is misclassified to ``nearest``, return where it ended so [B]."""
        half, index = (within.high - within.low) / 2, torch.arange(len(x), device=x.device)
        w = (((x - within.low) / half - 1) * _EDGE).atanh()
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        record = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        lowest = record.clone()
        patience = max(self.steps // 10, 1)
        for k in range(1, self.steps + 1):
            tanh = w.tanh()
            z = (within.low + half * (1 + tanh)).clamp(within.low, within.high)
            own = x[index]
            value, _, gradient = oracle.gradient(z, goal, samples[index])
            wrong = ~(value < 0)
            if k % patience == 1 or patience == 1:
                found[index] = False
            found[index] |= wrong
            size = within.distance(own, z)
            better = index[wrong & (size < nearest.size[index])]
            if len(better):
                kept = torch.isin(index, better)
                nearest.points[better], nearest.size[better] = z[kept], size[kept]
            short = -value
            price = torch.where(short > 0, c[index].to(x.dtype), 0.0)
            slope = (2 * (z - own) - expand(price, x[index]) * gradient) * half * (1 - tanh.square())
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope.square()
            step = first / (1 - 0.9**k) / ((second / (1 - 0.999**k)).sqrt() + 1e-8)
            w = w - annealed(self.rate, self.rate / 100, max(2 * k - self.steps, 0), self.steps) * step
            lowest = lowest.minimum(size.to(x.dtype).square() + price * short.clamp_min(0))
            if k % patience == 0:
                alive = (lowest < 0.9999 * record).nonzero()[:, 0]
                record, lowest, goal = lowest[alive], lowest[alive], goal.select(alive)
                if not len(alive):
                    break
                index, w, first, second = index[alive], w[alive], first[alive], second[alive]
        return found
