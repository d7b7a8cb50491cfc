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


def shifted(weights: Mapping[str, Tensor], moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``moved`` with gradients that go to ``weights`` as if the difference were a constant."""
    return {name: weight + (moved[name] - weight).detach() for name, weight in weights.items()}


@dataclass(frozen=True, kw_only=True)
class AtMovedWeights(Wrapped):
    """Base record of objectives that take the base's loss at w + v; the gradient there is applied to w.

    Attributes:
        only: patterns of the names of the parameters that move, see :func:`stalwart.sets.relative.select_parameters`.
    """

    only: str | tuple[str, ...] = "*weight"

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
        weights = select_parameters(model, self.only)

        def value(moved: Mapping[str, Tensor]) -> Tensor:
            # Statistics of batch normalisation are those of the pass that is trained on.
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            return self.combine(lambda z: run_with(model, {**buffers, **moved}, z), x, x_adv, y)[0]

        still = {name: weight.detach() for name, weight in weights.items()}
        moved = self.move(still, lambda at: slopes_of(value, at), lambda name: moment.generator(x, name))
        ends = shifted(weights, moved)
        loss, logits = self.combine(lambda z: run_with(model, ends, z), x, x_adv, y)
        return loss + self.penalty(model), logits
