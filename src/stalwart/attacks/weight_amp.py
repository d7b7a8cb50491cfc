"""Adversarial model perturbation: the weights move in an l2 ball."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from stalwart.attacks.base import Count
from stalwart.attacks.weight_base import Candidate, WeightAttack
from stalwart.attacks.weight_oracle import WeightOracle
from stalwart.attacks.weight_steps import climbed
from stalwart.core.numbers import Number, require
from stalwart.sets import RelativeBox


@dataclass(frozen=True, kw_only=True)
class WeightAMP(WeightAttack):
    """Gradient ascent with ||theta' - theta||_2 <= eps over all chosen weights together, inside the box as well.

        theta' <- Project(theta' + (eps / steps) g / ||g||),  g = grad loss(theta')

    The box's own limits hold too: to feel the ball alone, give ``RelativeBox(1.0)``. Weights that are 0 stay 0.
    Source: Zheng, Zhang, Mao, "Regularizing neural networks via adversarial model perturbation", CVPR 2021 (arXiv 2010.04925).

    Attributes:
        eps: radius of the ball, in units of the weights.
        steps: gradient steps.
    """

    eps: Number = 0.005
    steps: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.eps > 0, f"eps must be positive, got {self.eps}.")
        require(self.steps >= 1, f"steps must be at least 1, got {self.steps}.")
        require(
            self.loss == "ce", "weight-amp climbs the loss 'ce': it starts at the clean weights, where 'kl' is flat."
        )

    def search(self, oracle: WeightOracle, within: RelativeBox, seed: int) -> Iterator[Candidate]:
        """Yield every iterate; the steps together are no longer than the radius, and the box only shortens them."""
        moved: dict[str, Tensor] = dict(oracle.params)
        for _ in range(self.steps):
            value, slopes = oracle.gradient(moved)
            yield value, moved
            moved = within.project(oracle.params, climbed(moved, slopes, self.eps / self.steps))
        yield oracle.loss(moved), moved
