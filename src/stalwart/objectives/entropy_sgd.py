"""Entropy-SGD: the gradient of local entropy in the place of that of the loss."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stalwart.core.numbers import Number, require
from stalwart.core.random import normal
from stalwart.objectives.base import Moment
from stalwart.objectives.moved import Slopes, aside_of, mean_slopes_of
from stalwart.objectives.wrapped import Wrapped


@dataclass(frozen=True, kw_only=True)
class EntropySGD(Wrapped):
    """The base loss with the gradient gamma (w - mu), where mu is the mean of a Langevin walk around w.

        w' <- w' - rate (grad base(w') - gamma (w - w')) + sqrt(rate) noise R,   R ~ N(0, 1)
        mu <- average mu + (1 - average) w'                                      both start at w

    That is the gradient of the negative logarithm of how much of low loss is around w, so that wide valleys win. All
    parameters walk. The steps of the walk share the batch, where the published method draws new ones. Divide the number of
    epochs by ``steps`` to compare at equal cost.
    Source: Chaudhari et al., ICLR 2017 (arXiv 1611.01838), algorithm 1; ``average`` as in the authors' code.

    Attributes:
        steps: of the walk.
        rate: its step size.
        gamma: strength of the pull back to w.
        noise: epsilon, the size of its noise.
        average: weight of the mean so far.
    """

    steps: int = 10
    rate: Number = 0.1
    gamma: Number = 0.01
    noise: Number = 1e-4
    average: Number = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, f"steps must be at least 1, got {self.steps}.")
        require(self.rate > 0, f"rate must be positive, got {self.rate}.")
        require(self.gamma > 0, f"gamma must be positive, got {self.gamma}.")
        require(self.noise >= 0, f"noise must be at least 0, got {self.noise}.")
        require(0 <= self.average < 1, f"average must lie in [0, 1), got {self.average}.")

    def walk(self, weights: Mapping[str, Tensor], slopes: Slopes, generator: torch.Generator) -> dict[str, Tensor]:
        """Return mu by name.

        Args:
            weights: w by name, without gradients.
            slopes: the gradient of the base's loss at given weights, the mean over data-parallel processes.
            generator: the source of the walk's noise.
        """
        moved = mean = dict(weights)
        for _ in range(self.steps):
            found = slopes(moved)
            moved = {
                name: at
                - self.rate * (found[name] - self.gamma * (weights[name] - at))
                + self.rate**0.5 * self.noise * normal(at.shape, generator, at, batch_axis=None)
                for name, at in moved.items()
            }
            mean = {name: self.average * mean[name] + (1 - self.average) * at for name, at in moved.items()}
        return mean

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the base loss at w with the gradient of local entropy, and the logits at w."""
        x_adv = self.craft(model, x, y, moment)
        weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        still = {name: weight.detach() for name, weight in weights.items()}
        aside = aside_of(self, model, x, x_adv, y)
        mean = self.walk(still, lambda at: mean_slopes_of(aside, at), moment.generator(x, "entropy-sgd"))
        loss, logits = self.combine(model, x, x_adv, y)
        loss = loss.detach()
        for name, weight in weights.items():
            # Worth nothing, but with the wanted gradient.
            loss = loss + ((weight - still[name]) * (self.gamma * (still[name] - mean[name]))).sum()
        return loss + self.penalty(model), logits
