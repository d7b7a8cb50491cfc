"""DDN: the direction and the length of a change, learned apart."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stalwart.attacks.base import Count
from stalwart.attacks.losses import Goal
from stalwart.attacks.minimal import MinimalAttack, Nearest
from stalwart.attacks.nearest_class import distance_goal
from stalwart.attacks.oracle import Oracle
from stalwart.core.numbers import Number, require
from stalwart.sets import L2, ThreatSet
from stalwart.sets.base import expand


@dataclass(frozen=True, kw_only=True)
class DDN(MinimalAttack):
    """Decoupled direction and norm, for l2: steps along the gradient on a sphere that shrinks inside and grows outside.

        δ <- δ + α g / ||g||;  ρ <- (1 ∓ gamma) ρ where x + δ is misclassified or not;  δ <- clip(x + ρ δ / ||δ||) - x

    α falls from 1 to 0.01 of the box's width along a cosine.
    Source: Rony et al., CVPR 2019 (arXiv 1811.09600), algorithm 1, without its quantisation.

    Attributes:
        steps: at least 1.
        start: the first ρ in data units, above 0.
        gamma: how fast ρ changes, in (0, 1).
        loss: what is climbed: "nearest", the margin in units of distance (:mod:`stalwart.attacks.nearest_class`), "margin", or
            "ce" as published, which mixes the directions of all classes.
        classes: how many classes "nearest" measures the distance of.
    """

    steps: Count = 100
    start: Number = 1.0
    gamma: Number = 0.05
    loss: Literal["nearest", "ce", "margin"] = "nearest"
    classes: Count = 10
    kinds = (L2,)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "classes"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}.")
        require(self.start > 0, f"start must be above 0, got {self.start}.")
        require(0 < self.gamma < 1, f"gamma must lie in (0, 1), got {self.gamma}.")

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, samples: Tensor, seed: int) -> Tensor:
        """Return the nearest misclassified iterate."""
        nearest, z = Nearest(x), x
        goal: Goal = (
            distance_goal(oracle, x, y, within, samples, self.classes) if self.loss == "nearest" else Goal(self.loss, y)
        )
        radius = torch.full((len(x),), self.start, dtype=x.dtype, device=x.device)
        farthest = within.distance(x, torch.where(x - within.low > within.high - x, within.low, within.high)).to(
            x.dtype
        )
        for k in range(self.steps):
            alpha = (within.high - within.low) * annealed(1.0, 0.01, k, self.steps)
            _, logits, gradient = oracle.gradient(z, goal, samples)
            wrong = goal.broken(logits)
            nearest.offer(z, within.distance(x, z), wrong)
            radius = (radius * torch.where(wrong, 1 - self.gamma, 1 + self.gamma)).minimum(farthest)
            change = z - x + alpha * within.steepest(gradient)
            length = change.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
            z = (x + expand(radius / length, x) * change).clamp(within.low, within.high)
        nearest.offer(z, within.distance(x, z), goal.broken(oracle.logits(z, samples)[-1]))
        return nearest.points


def annealed(first: float, last: float, k: int, steps: int) -> float:
    """Return the value at step k of ``steps`` of a half cosine from ``first`` to ``last``."""
    return last + (first - last) * (1 + math.cos(math.pi * k / steps)) / 2
