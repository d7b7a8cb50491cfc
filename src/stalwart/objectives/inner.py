"""The inner maximisation of adversarial training: fixed steps, last iterate, in evaluation mode."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from stalwart.attacks.fast_gradients import FastGradients
from stalwart.attacks.losses import cross_entropy
from stalwart.core.modes import evaluating
from stalwart.core.numbers import Number, require
from stalwart.core.random import normal
from stalwart.core.registry import lookup
from stalwart.objectives.base import Moment, Objective
from stalwart.sets import ThreatSet
from stalwart.sets.table import SETS
from stalwart.stochastic import draw_logits


def maximise(
    model: nn.Module,
    x: Tensor,
    start: Tensor,
    value: Callable[[Tensor], Tensor],
    within: ThreatSet,
    steps: int,
    step: float | Tensor,
    draws: int = 1,
) -> Tensor:
    """Climb ``value``, a function of logits [draws, B, K], from ``start`` for ``steps`` steps and return the last iterate.

    Unlike an attack that evaluates, it neither drops samples nor keeps the best iterate: training wants hard inputs of
    every sample at a fixed price.
    """
    z = start.detach()
    with evaluating(model), torch.enable_grad(), FastGradients():
        for _ in range(steps):
            z.requires_grad_()
            (gradient,) = torch.autograd.grad(value(draw_logits(model, z, draws)).sum(), z)
            z = within.project(x, z.detach() + step * within.steepest(gradient))
    return z.detach()


@dataclass(frozen=True, kw_only=True)
class Adversarial(Objective):
    """Base record of objectives that train on attacked inputs.

    Attributes:
        eps: radius of the threat set in data units.
        norm: "linf" or "l2".
        steps: steps of the inner attack.
        step: its step size in data units; default 2.5 * eps / steps.
        eot: noise draws averaged in each step, for randomised models.
    """

    eps: Number = 8 / 255
    norm: Literal["linf", "l2"] = "linf"
    steps: int = 10
    step: Number | None = None
    eot: int = 1

    def __post_init__(self) -> None:
        require(self.eps >= 0, f"eps must be at least 0, got {self.eps}.")
        require(self.steps >= 1, f"steps must be at least 1, got {self.steps}.")
        require(self.step is None or self.step > 0, f"step must be positive, got {self.step}.")
        require(self.eot >= 1, f"eot must be at least 1, got {self.eot}.")

    @property
    def within(self) -> ThreatSet:
        """The threat set that is trained against."""
        found: ThreatSet = lookup("threat set", SETS, self.norm)(self.eps)
        return found

    def climb(
        self,
        model: nn.Module,
        x: Tensor,
        start: Tensor,
        value: Callable[[Tensor], Tensor],
        steps: int | None = None,
        step: float | None = None,
    ) -> Tensor:
        """Run the inner attack on ``value`` from ``start``, with this record's steps and step size unless others are given."""
        steps = steps or self.steps
        step = step or self.step or 2.5 * self.eps / steps
        return maximise(model, x, start, value, self.within, steps, step, self.eot)

    def climb_cross_entropy(
        self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, steps: int | None = None, step: float | None = None
    ) -> Tensor:
        """Run the inner attack on the cross entropy."""
        return self.climb(model, x, start, lambda logits: cross_entropy(logits, y).mean(0), steps, step)

    def nearby(self, x: Tensor, moment: Moment) -> Tensor:
        """Return x + 0.001 N(0, 1), the start of TRADES and MART, inside the threat set."""
        return self.within.project(x, x + 0.001 * normal(x.shape, moment.generator(x, "start"), x))
