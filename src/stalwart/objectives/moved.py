"""Objectives that take another one's loss at moved weights, and what they share with others that move weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from stalwart.attacks.replaced import run_with
from stalwart.objectives.base import Moment
from stalwart.objectives.wrapped import Wrapped
from stalwart.sets.relative import select_parameters

Slopes = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""The gradient of a loss at given weights, by name."""


def slopes_of(value: Callable[[Mapping[str, Tensor]], Tensor], moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradient of ``value`` at ``moved``, summed over data-parallel processes, so that all move alike.

    It is 0 for a weight that the value does not depend on, such as that of a noise that is switched off.
    """
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in moved.items()}
    found = torch.autograd.grad(value(leaves), list(leaves.values()), allow_unused=True)
    slopes = {
        name: torch.zeros_like(leaf) if slope is None else slope
        for (name, leaf), slope in zip(leaves.items(), found, strict=True)
    }
    if distributed.is_initialized():
        for slope in slopes.values():
            distributed.all_reduce(slope)
    return slopes


def mean_slopes_of(value: Callable[[Mapping[str, Tensor]], Tensor], moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return :func:`slopes_of` as the mean over data-parallel processes, for steps whose length counts."""
    world = distributed.get_world_size() if distributed.is_initialized() else 1
    return {name: slope / world for name, slope in slopes_of(value, moved).items()}


def shifted(weights: Mapping[str, Tensor], moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``moved``, to the bit, with gradients that go to ``weights`` as if the difference were a constant."""
    # Zeros are added, since w + (moved - w) would round.
    return {name: moved[name].detach() + (weight - weight.detach()) for name, weight in weights.items()}


def aside_of(
    objective: Wrapped, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Return the base's loss as a function of the weights; statistics of batch normalisation do not see its passes.

    They are those of the pass that is trained on.
    """

    def value(moved: Mapping[str, Tensor]) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return objective.combine(lambda z: run_with(model, {**buffers, **moved}, z), x, x_adv, y)[0]

    return value


@dataclass(frozen=True, kw_only=True)
class AtMovedWeights(Wrapped):
    """Base record of objectives that take the base's loss at w + v; the gradient there is applied to w.

    Attributes:
        only: patterns of the names of the parameters that move, see :func:`stalwart.sets.relative.select_parameters`.
    """

    only: str | tuple[str, ...] = "*weight"

    def chosen(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters that move, by name."""
        return select_parameters(model, self.only)

    def move(
        self, weights: Mapping[str, Tensor], slopes: Slopes, generator: Callable[[str], torch.Generator]
    ) -> dict[str, Tensor]:
        """Return w + v by name; no gradient flows through it.

        Args:
            weights: w by name, without gradients.
            slopes: the gradient of the base's loss at given weights, on the same crafted inputs.
            generator: makes the step's generator for a name.
        """
        raise NotImplementedError

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the base loss at the moved weights."""
        x_adv = self.craft(model, x, y, moment)
        weights = self.chosen(model)
        still = {name: weight.detach() for name, weight in weights.items()}
        aside = aside_of(self, model, x, x_adv, y)
        moved = self.move(still, lambda at: slopes_of(aside, at), lambda name: moment.generator(x, name))
        ends = shifted(weights, moved)
        loss, logits = self.combine(lambda z: run_with(model, ends, z), x, x_adv, y)
        return loss + self.penalty(model), logits
