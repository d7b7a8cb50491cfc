"""Fast adversarial training: one step from a random start, watched for catastrophic overfitting."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.core.modes import evaluating
from stalwart.core.numbers import Number, require
from stalwart.objectives.base import Moment, Net
from stalwart.objectives.inner import Adversarial


@dataclass(frozen=True, kw_only=True)
class FGSMRS(Adversarial):
    """CE(f(x + d'), y) with d ~ U(-eps, eps), d' = clip(d + 1.25 eps sign(grad)).

    It can collapse within one epoch: FGSM accuracy soars while PGD accuracy falls to zero. The training loop therefore
    measures :meth:`watch` once an epoch, stops on a fall, and hands on weights from before it.
    Source: Wong, Rice, Kolter, ICLR 2020 (arXiv 2001.03994), algorithm 3 and section 5.4.

    Attributes:
        relative_step: step as a share of eps.
        fall: drop of watched accuracy between two epochs that counts as catastrophic overfitting.
    """

    steps: int = 1
    relative_step: Number = 1.25
    fall: Number = 0.2
    watch_steps: ClassVar[int] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.steps == 1 and self.step is None,
            "fgsm-rs takes one step of relative_step * eps; leave steps and step.",
        )
        require(self.relative_step > 0, f"relative_step must be positive, got {self.relative_step}.")
        require(0 < self.fall <= 1, f"fall must lie in (0, 1], got {self.fall}.")

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Take one large step from a random start."""
        start = self.within.sample(x, moment.generator(x, "start"))
        return self.climb_cross_entropy(model, x, y, start, 1, self.relative_step * self.eps)

    def combine(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the adversarial cross entropy and logits."""
        logits = net(x_adv)
        return F.cross_entropy(logits, y), logits

    def watch(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> float:
        """Return accuracy under PGD-5 with step eps / 4 (2/255 at eps 8/255) on training samples x [B, ...]."""
        start = self.within.sample(x, moment.generator(x, "watch"))
        x_adv = self.climb_cross_entropy(model, x, y, start, self.watch_steps, self.eps / 4)
        with evaluating(model), torch.no_grad():
            return float((model(x_adv).argmax(1) == y).float().mean())
