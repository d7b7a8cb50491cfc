"""Expressive losses: from adversarial training (alpha = 0) to interval bounds (alpha = 1) by one coefficient.

Source: De Palma, Bunel, Dvijotham, Kumar, Stanforth, Lomuscio, "Expressive losses for verified robustness via convex
combinations", ICLR 2024 (arXiv 2305.13991), section 4.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from stalwart.core.numbers import Number, require
from stalwart.objectives.base import Moment
from stalwart.objectives.bounds_adapter import CleanPass
from stalwart.objectives.certified import Attacking, Step, margin_loss, margins_of

_SMALLEST_LOSS = 1e-12


@dataclass(frozen=True, kw_only=True)
class Expressive(Attacking):
    """Base record of losses between the margins at an adversarial example and their interval bounds.

    Attributes:
        alpha: weight of the bounds, in [0, 1].
    """

    alpha: Number = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.alpha <= 1, f"alpha must lie in [0, 1], got {self.alpha}.")

    def mix(self, adversarial: Tensor, bounds: Tensor) -> Tensor:
        """Return the loss [B] of margins z_y - z_j at the adversarial examples and of their lower bounds, [B, K - 1] each."""
        raise NotImplementedError

    def step(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, moment: Moment) -> Step:
        """Return the mean of the mixed loss."""
        x_adv = self.attack(model, x, y, eps, moment)
        clean = CleanPass(model, x)
        box = clean.box(*self.region(model, x, y, eps, moment))
        return Step(self.mix(margins_of(clean.at(x_adv), y), box.margins(y)).mean(), clean.logits, (box,))


@dataclass(frozen=True, kw_only=True)
class MTLIBP(Expressive):
    """(1 - alpha) L_adv + alpha L_IBP."""

    alpha: Number = 0.01

    def mix(self, adversarial: Tensor, bounds: Tensor) -> Tensor:
        """Mix the losses."""
        return (1 - self.alpha) * margin_loss(adversarial) + self.alpha * margin_loss(bounds)


@dataclass(frozen=True, kw_only=True)
class CCIBP(Expressive):
    """Cross entropy of the margins (1 - alpha) m_adv + alpha lb."""

    alpha: Number = 0.1

    def mix(self, adversarial: Tensor, bounds: Tensor) -> Tensor:
        """Mix the margins."""
        return margin_loss((1 - self.alpha) * adversarial + self.alpha * bounds)


@dataclass(frozen=True, kw_only=True)
class ExpIBP(Expressive):
    """L_adv^(1 - alpha) L_IBP^alpha of each sample."""

    alpha: Number = 0.5

    def mix(self, adversarial: Tensor, bounds: Tensor) -> Tensor:
        """Mix the logarithms of the losses, each at least 1e-12 so that its power has a slope."""
        a, b = (margin_loss(margins).clamp_min(_SMALLEST_LOSS).log() for margins in (adversarial, bounds))
        return ((1 - self.alpha) * a + self.alpha * b).exp()
