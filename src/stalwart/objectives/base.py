"""What a training objective is, and the module that wraps it around a model for data-parallel training.

An objective works in two parts, so that they can be combined: ``craft`` makes the inputs it trains on (the clean ones by
default), ``combine`` turns network outputs into a loss. A third, ``penalty``, depends on the parameters alone, and
``after_step`` may move the parameters once the optimiser has.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.core.random import derive, generator, isolated
from stalwart.models.param_ramp import jittered
from stalwart.stochastic import noise

Net = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Moment:
    """When a loss is computed: all its randomness comes from ``seed``, unique to the step, so a resumed run repeats it.

    Attributes:
        seed: unique to the step.
        epoch: from 0.
        share: how much of the epoch is done, in [0, 1).
        part: which update of the weights on this batch, from 0, where an objective makes several.
        kept: what such an objective hands from one part to the next; empty at the first.
    """

    seed: int
    epoch: int = 0
    share: float = 0.0
    part: int = 0
    kept: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def time(self) -> float:
        """Epochs since the start of the run, with their fraction."""
        return self.epoch + self.share

    def generator(self, like: Tensor, *path: object) -> torch.Generator:
        """Return a generator for this step on the device of ``like``."""
        return generator(self.seed, *path, device=like.device)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Base record of all objectives: natural training, mean cross entropy on clean inputs."""

    @property
    def updates(self) -> int:
        """How many updates of the weights a batch is worth; the loss is computed anew for each, see :class:`Moment`."""
        return 1

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Return the inputs [B, ...] to train on beside x, found in evaluation mode; no gradient flows through them."""
        return x

    def combine(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the logits [B, K] that training accuracy is counted on."""
        logits = net(x)
        return F.cross_entropy(logits, y), logits

    def penalty(self, model: nn.Module) -> Tensor | float:
        """Return a term that depends on the parameters alone."""
        return 0.0

    def after_step(self, model: nn.Module, moment: Moment) -> None:
        """Move the parameters in place after a step of the optimiser; every data-parallel process does the same."""

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the whole loss and the logits [B, K]."""
        loss, logits = self.combine(model, x, self.craft(model, x, y, moment), y)
        return loss + self.penalty(model), logits


class Trainee(nn.Module):
    """A model with its objective: the module that ``DistributedDataParallel`` wraps.

    Attacks on inputs or weights, and bounds, all run inside ``forward``, so the wrapper sees a single forward pass.
    """

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the number of correct training predictions, both scalars."""
        with (
            noise(self.model, seed=derive(moment.seed, "noise")),
            jittered(self.model, moment.generator(x, "jitter")),
            isolated(moment.seed, per_rank=True),
        ):
            loss, logits = self.objective.loss(self.model, x, y, moment)
        return loss, (logits.detach().argmax(1) == y).sum()
