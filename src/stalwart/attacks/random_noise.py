"""Random noise: the control that every gradient attack must beat."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stalwart.attacks.base import Attack, Count
from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.core.numbers import require
from stalwart.core.random import generator, normal
from stalwart.sets import ThreatSet
from stalwart.sets.base import expand


@dataclass(frozen=True, kw_only=True)
class RandomNoise(Attack):
    """The best of ``trials`` random points of the threat set.

    Attributes:
        trials: points tried for each sample; the one of largest margin loss is kept.
        kind: "sign" takes a whole step along a random direction's steepest point (for Linf a random corner), "uniform" a
            random interior point.
    """

    trials: Count = 1
    kind: Literal["sign", "uniform"] = "sign"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.trials >= 1, f"trials must be at least 1, got {self.trials}.")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Try the points; no gradient is used."""
        everyone = torch.arange(len(x), device=x.device)
        source = generator(seed, "noise", device=x.device)
        goal = Goal("margin", y)
        found, best = x.clone(), torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)
        for _ in range(self.trials):
            z = self._point(x, within, source)
            if self.trials == 1:
                return z
            value = goal(oracle.logits(z, everyone, self.eot)).mean(0)
            better = value > best
            found[better], best[better] = z[better], value[better]
        return found

    def _point(self, x: Tensor, within: ThreatSet, source: torch.Generator) -> Tensor:
        if self.kind == "uniform":
            return within.sample(x, source)
        return within.project(x, x + expand(within.scale, x) * within.steepest(normal(x.shape, source, x)))
