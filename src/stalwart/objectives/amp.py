"""Adversarial model perturbation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.attacks.weight_steps import climbed
from stalwart.core.numbers import Number, require
from stalwart.objectives.moved import AtMovedWeights, Slopes


@dataclass(frozen=True, kw_only=True)
class AMP(AtMovedWeights):
    """The base loss at w + v, where v climbs it in the ball ||v||_2 <= eps over all weights together; v is a constant.

        v <- v + (eps / steps) g / ||g||,  g the gradient of the base loss at w + v

    Source: Zheng, Zhang, Mao, "Regularizing neural networks via adversarial model perturbation", CVPR 2021 (arXiv 2010.04925).

    Attributes:
        eps: radius of the ball, in units of the weights.
        steps: steps of the ascent.
    """

    only: str | tuple[str, ...] = "*"
    eps: Number = 0.005
    steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.eps > 0, f"eps must be positive, got {self.eps}.")
        require(self.steps >= 1, f"steps must be at least 1, got {self.steps}.")

    def move(
        self, weights: Mapping[str, Tensor], slopes: Slopes, generator: Callable[[str], torch.Generator]
    ) -> dict[str, Tensor]:
        """Return the weights after the ascent."""
        moved = dict(weights)
        for _ in range(self.steps):
            moved = climbed(moved, slopes(moved), self.eps / self.steps)
        return moved
