"""Projected gradient descent on the probabilities of events."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.attacks.base import Count
from stalwart.attacks.binary_pgd import BinaryPGD
from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.core.numbers import Number, require
from stalwart.core.random import uniform

_EDGE = 1e-6
"""Probabilities this near to 0 or 1 are taken as this."""


@dataclass(frozen=True, kw_only=True)
class ProbabilisticPGD(BinaryPGD):
    """:class:`BinaryPGD` with gradients through relaxed Bernoulli draws, averaged over several.

        X = σ((logit u + logit P) / temperature),  u ~ U(0, 1)

    Source: Büchel et al., Frontiers in Neuroscience 2022 (arXiv 2110.02929), its second comparison; the relaxation: Maddison,
    Mnih, Teh, ICLR 2017 (arXiv 1611.00712).

    Attributes:
        draws: relaxed draws whose gradients are averaged in each step.
        temperature: the smaller, the nearer to 0 and 1.
    """

    draws: Count = 5
    temperature: Number = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.draws >= 1, f"draws must be at least 1, got {self.draws}.")
        require(self.temperature > 0, f"temperature must be positive, got {self.temperature}.")

    def slope(self, oracle: Oracle, p: Tensor, goal: Goal, samples: Tensor, source: torch.Generator) -> Tensor:
        """Return the mean gradient with respect to p [B, ...]."""
        p, total = p.clamp(_EDGE, 1 - _EDGE), torch.zeros_like(p)
        for _ in range(self.draws):
            u = uniform(p.shape, source, p)
            z = torch.sigmoid((u.logit() + p.logit()) / self.temperature)
            total += oracle.gradient(z, goal, samples)[2] * z * (1 - z)
        return total / (self.draws * self.temperature * p * (1 - p))
