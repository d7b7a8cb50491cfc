"""The Hoyer regulariser of one-step spiking networks."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stalwart.core.errors import UsageError
from stalwart.core.numbers import Number, require
from stalwart.objectives.base import Moment
from stalwart.objectives.wrapped import Wrapped
from stalwart.spiking.hoyer import HoyerNeuron, collected, hoyer_measure


@dataclass(frozen=True, kw_only=True)
class Hoyer(Wrapped):
    """Base loss + weight * Σ_l (Σ |z|)² / Σ z² over layers of one-step neurons, z their membranes in units of the threshold.

    It pushes membranes away from the threshold. Membranes of every pass that the base's loss makes count.
    Source: Datta et al., 2022 (arXiv 2212.10170), equation 6.

    Attributes:
        weight: λ_H, at least 0; the sum grows with the number of neurons, so that it is small.
    """

    weight: Number = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.weight >= 0, f"weight must be at least 0, got {self.weight}.")

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the base loss with the regulariser, and the logits."""
        penalty = self.penalty(model)
        x_adv = self.craft(model, x, y, moment)
        with collected(model) as membranes:
            loss, logits = self.combine(model, x, x_adv, y)
        measures = torch.stack([hoyer_measure(one) for one in membranes])
        return loss + self.weight * measures.sum() + penalty, logits

    def penalty(self, model: nn.Module) -> Tensor | float:
        """Return the base's penalty.

        Raises:
            UsageError: the model has no one-step neurons.
        """
        if not any(isinstance(layer, HoyerNeuron) for layer in model.modules()):
            raise UsageError(
                "the objective 'hoyer' needs a model with one-step neurons; give its spiking section neuron: {name: hoyer}."
            )
        return self.inner.penalty(model)
