"""Adversarial block coordinate descent: some weights climb the loss while the others descend it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stalwart.attacks.replaced import run_with
from stalwart.core.numbers import Number, require
from stalwart.core.random import uniform
from stalwart.objectives.base import Moment
from stalwart.objectives.moved import aside_of, mean_slopes_of
from stalwart.objectives.wrapped import Wrapped


@dataclass(frozen=True, kw_only=True)
class ABCD(Wrapped):
    """Random weights climb the base loss a little, for good, and the others descend it from there.

        v = climb M grad base(w),   M random in {0, 1}
        w <- w + v - (step of the optimiser with the gradient (1 - M) grad base(w + v))

    The climb is meant to be much smaller than the descent. M is drawn anew for each update of the weights, of which a batch is
    worth ``steps``; all parameters take part.
    Source: Cicek and Soatto, "Input and weight space smoothing for semi-supervised learning", 2018 (arXiv 1805.09302).

    Attributes:
        climb: step size of the ascent.
        share: probability of a weight to climb.
        steps: updates of the weights on each batch.
    """

    climb: Number = 1e-3
    share: Number = 0.5
    steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.climb >= 0, f"climb must be at least 0, got {self.climb}.")
        require(0 <= self.share < 1, f"share must lie in [0, 1), got {self.share}; nothing would descend at 1.")
        require(self.steps >= 1, f"steps must be at least 1, got {self.steps}.")
        require(self.inner.updates == 1, f"'{self.base}' makes several updates a batch itself; put another inside.")

    @property
    def updates(self) -> int:
        """The steps."""
        return self.steps

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the base loss at w + v, with gradients for those weights alone that do not climb."""
        x_adv = self.craft(model, x, y, moment)
        weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        still = {name: weight.detach() for name, weight in weights.items()}
        slopes = mean_slopes_of(aside_of(self, model, x, x_adv, y), still)
        source = moment.generator(x, "abcd", moment.part)
        climbs = {name: uniform(w.shape, source, w, batch_axis=None) < self.share for name, w in still.items()}
        moment.kept["abcd"] = shifts = {name: self.climb * (climbs[name] * slopes[name]) for name in still}
        ends = {name: torch.where(climbs[name], still[name] + shifts[name], weight) for name, weight in weights.items()}
        loss, logits = self.combine(lambda z: run_with(model, ends, z), x, x_adv, y)
        return loss + self.penalty(model), logits

    @torch.no_grad()
    def after_step(self, model: nn.Module, moment: Moment) -> None:
        """Make the climb one for good."""
        shifts: dict[str, Tensor] = moment.kept.pop("abcd")
        for name, parameter in model.named_parameters():
            if name in shifts:
                parameter.add_(shifts[name])
        super().after_step(model, moment)
