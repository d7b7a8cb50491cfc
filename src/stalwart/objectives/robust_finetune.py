"""Robust fine-tuning of converted spiking networks: weights and thresholds together, against one quick attack."""

from dataclasses import dataclass

from torch import Tensor, nn

from stalwart.core.numbers import Number, require
from stalwart.core.random import normal
from stalwart.objectives.base import Moment
from stalwart.objectives.trades import TRADES


@dataclass(frozen=True, kw_only=True)
class RobustFinetune(TRADES):
    """CE(f(x), y) + beta KL(p(x) || p(x')), x' by one gradient step on the divergence behind one random step (R+FGSM).

        x° = Π(x + a eps sign N(0, 1));   x' = Π(x° + (1 - a) eps sign ∇ KL)

    Source: Özdenizci and Legenstein, TMLR 2024 (arXiv 2311.09266), section 3 and code.

    Attributes:
        share: a, the share of the radius that the random step takes, in [0, 1).
    """

    eps: Number = 2 / 255
    steps: int = 1
    beta: Number = 2.0
    share: Number = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps == 1, "robust-finetune takes one gradient step; leave steps, or use 'trades'.")
        require(self.step is None, "the step of robust-finetune is (1 - share) eps; set share.")
        require(0 <= self.share < 1, f"share must lie in [0, 1), got {self.share}.")

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Attack the divergence from the clean prediction, once."""
        away = normal(x.shape, moment.generator(x, "start"), x)
        start = self.within.project(x, x + self.share * self.eps * self.within.steepest(away))
        return self.climb_divergence(model, x, start, step=(1 - self.share) * self.eps)
