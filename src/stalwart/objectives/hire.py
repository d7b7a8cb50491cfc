"""Training of spiking networks that moves weights and inputs in turn while time goes on."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.attacks.fast_gradients import FastGradients
from stalwart.core.errors import UsageError
from stalwart.core.modes import evaluating
from stalwart.core.numbers import require
from stalwart.objectives.base import Moment
from stalwart.objectives.inner import Adversarial
from stalwart.spiking import period, spiking_networks
from stalwart.spiking.period import Kept


@dataclass(frozen=True, kw_only=True)
class HIRE(Adversarial):
    """T steps in N periods: after each an update of the weights, then x <- Π(x + step · sign ∇CE), and time goes on.

    The loss of a period is the cross entropy of the outputs accumulated so far, its gradient that of the period alone:
    membranes and outputs of periods before are constants. The first period sees the clean input. Momentum, weight decay and
    clipping apply to every update, so that a batch counts N times.
    Source: Kundu, Pedram and Beerel, "HIRE-SNN", ICCV 2021 (arXiv 2110.11417), algorithm 1. It claims no extra time, which
    only ``gradient: shared`` has; that membranes are constants between periods is ours.

    Attributes:
        periods: N, at least 1 and at most the network's time steps; 1 is natural training.
        step: step size in data units; default eps / (periods - 1).
        gradient: of the input, "updated" by one more pass of the period, in evaluation mode with the new weights, or "shared"
            with the update: of the same pass, with the old weights.
    """

    steps: int = 1
    periods: int = 2
    gradient: Literal["updated", "shared"] = "updated"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps == 1, "hire takes one step after each period; leave steps.")
        require(self.periods >= 1, f"periods must be at least 1, got {self.periods}.")

    @property
    def updates(self) -> int:
        """One update a period."""
        return self.periods

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the cross entropy of the period ``moment.part`` and the logits so far."""
        total = self._time_steps(model)
        edges = [total * number // self.periods for number in range(self.periods + 1)]
        part = moment.part
        if part == 0:
            z, before = x, dict[nn.Module, Tensor]()
        else:
            before = moment.kept["after"]
            z = self._moved(model, x, y, moment, edges[part - 1], edges[part])
        z = z.detach()
        if self.gradient == "shared":
            z.requires_grad_()  # the update's backward pass leaves the gradient here
        with period(edges[part], edges[part + 1], before) as after:
            logits = model(z)
        moment.kept.update(z=z, before=before, after=after)
        return F.cross_entropy(logits, y), logits

    def penalty(self, model: nn.Module) -> float:
        """Return 0.

        Raises:
            UsageError: a model that is not spiking, or has fewer time steps than periods.
        """
        self._time_steps(model)
        return 0.0

    def _moved(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment, first: int, last: int) -> Tensor:
        z: Tensor = moment.kept["z"]
        before: Kept = moment.kept["before"]
        if self.gradient == "shared":
            assert z.grad is not None
            gradient = z.grad
        else:
            z = z.detach().requires_grad_()
            with evaluating(model), torch.enable_grad(), FastGradients(), period(first, last, before):
                (gradient,) = torch.autograd.grad(F.cross_entropy(model(z), y), z)
        step = self.step or self.eps / (self.periods - 1)
        return self.within.project(x, z.detach() + step * self.within.steepest(gradient))

    def _time_steps(self, model: nn.Module) -> int:
        found = {network.steps for network in spiking_networks(model)}
        if not found:
            raise UsageError("the objective 'hire' needs a spiking model; give the model a spiking section.")
        total = min(found)
        require(
            total >= self.periods, f"hire needs at least as many time steps as its {self.periods} periods, got {total}."
        )
        return total
