"""FMN: the fast minimum-norm attack, for every norm."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.attacks.base import Count
from stalwart.attacks.ddn import annealed
from stalwart.attacks.minimal import MinimalAttack, Nearest, within_radius
from stalwart.attacks.nearest_class import distance_goal
from stalwart.attacks.oracle import Oracle
from stalwart.core.numbers import Number, require
from stalwart.sets import L0, L1, L2, Linf, ThreatSet
from stalwart.sets.base import expand

_DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}


@dataclass(frozen=True, kw_only=True)
class FMN(MinimalAttack):
    """Fast minimum-norm attack, for l0, l1, l2 and linf: ascent of the margin in a ball whose radius adapts.

        ε <- min((1 - γ) ε, ||δ*||)       where x + δ is misclassified, δ* the least such change so far
        ε <- (1 + γ) ε                    where it is not, but some iterate was
        ε <- max(||δ|| + |margin| / ||g||_*, (1 + γ) ε)   where none was: the linearised model's boundary
        δ <- Π_ε(x + δ + α g / ||g||_2) - x

    For l0, where a location is a pixel with all its channels, ε changes by at least one location. α and γ fall along a cosine;
    Π is the projection on ball and box together. The margin is that in units of distance
    (:mod:`stalwart.attacks.nearest_class`), not of logits as published, so that the nearest class leads; the way to the
    boundary is taken (1 + γ) times, without which a linear model's boundary is approached, not crossed.
    Source: Pintor, Roli, Brendel, Biggio, NeurIPS 2021 (arXiv 2102.12827), algorithm 1.

    Attributes:
        steps: at least 1.
        step: the first α, a share of the box's width in l2, above 0; the last is a hundredth of it.
        gamma: the first γ in (0, 1); the last is 0.001.
        classes: how many of the likeliest classes are measured for the margin.
    """

    steps: Count = 100
    step: Number = 1.0
    gamma: Number = 0.05
    classes: Count = 10
    kinds = (L0, L1, L2, Linf)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "classes"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}.")
        require(self.step > 0, f"step must be above 0, got {self.step}.")
        require(0 < self.gamma < 1, f"gamma must lie in (0, 1), got {self.gamma}.")

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, samples: Tensor, seed: int) -> Tensor:
        """Return the nearest misclassified iterate."""
        goal = distance_goal(oracle, x, y, within, samples, self.classes)
        nearest, z = Nearest(x), x
        sparse = isinstance(within, L0)
        farthest = within.distance(x, torch.where(x - within.low > within.high - x, within.low, within.high))
        radius = torch.ones_like(farthest) if sparse else torch.zeros_like(farthest)
        for k in range(self.steps):
            alpha = (within.high - within.low) * annealed(self.step, self.step / 100, k, self.steps)
            gamma = annealed(self.gamma, 0.001, k, self.steps)
            value, _, gradient = oracle.gradient(z, goal, samples)
            wrong, size = ~(value < 0), within.distance(x, z)
            nearest.offer(z, size, wrong)
            less, more = (1 - gamma) * radius, (1 + gamma) * radius
            if sparse:
                less, more = less.floor().minimum(radius - 1), more.floor().maximum(radius + 1)
            else:
                slope = gradient.flatten(1).double().norm(p=_DUAL[within.name], dim=1)
                jump = size + (1 + gamma) * value.abs().double() / slope.clamp_min(1e-30)
                more = torch.where(nearest.size.isfinite(), more, jump.maximum(more))
            radius = torch.where(wrong, less.minimum(nearest.size), more).minimum(farthest)
            radius = radius.clamp_min(1.0) if sparse else radius
            length = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
            z = within_radius(within, x, z + alpha * gradient / expand(length, x), radius)
        nearest.offer(z, within.distance(x, z), ~(oracle.averaged(oracle.logits(z, samples, oracle.eot), goal) < 0))
        return nearest.points
