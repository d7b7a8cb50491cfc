"""TRADES: clean accuracy against the divergence of nearby predictions."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.attacks.losses import kl_divergence
from stalwart.core.modes import evaluating
from stalwart.core.numbers import Number, require
from stalwart.objectives.base import Moment, Net
from stalwart.objectives.inner import Adversarial


@dataclass(frozen=True, kw_only=True)
class TRADES(Adversarial):
    """CE(f(x), y) + beta * KL(p(x) || p(x')), summed over classes and averaged over the batch.

    x' maximises the same divergence from x + 0.001 N(0, 1). The clean prediction is a constant in the attack, not in the
    loss. Source: Zhang et al., ICML 2019 (arXiv 1901.08573), equation 5.

    Attributes:
        beta: weight of the divergence.
    """

    beta: Number = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta >= 0, f"beta must be at least 0, got {self.beta}.")

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Attack the divergence from the clean prediction."""
        return self.climb_divergence(model, x, self.nearby(x, moment))

    def climb_divergence(self, model: nn.Module, x: Tensor, start: Tensor, step: float | None = None) -> Tensor:
        """Run the inner attack on the divergence from the clean prediction."""
        with evaluating(model), torch.no_grad():
            clean = model(x).log_softmax(-1)
        return self.climb(
            model, x, start, lambda logits: kl_divergence(clean, logits.log_softmax(-1)).mean(0), step=step
        )

    def combine(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the TRADES loss and the clean logits."""
        logits = net(x)
        divergence = kl_divergence(logits.log_softmax(-1), net(x_adv).log_softmax(-1)).mean()
        return F.cross_entropy(logits, y) + self.beta * divergence, logits
