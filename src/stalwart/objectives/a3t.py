"""Adversarial training that attacks what the network believes, right or wrong."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stalwart.core.modes import evaluating
from stalwart.objectives.base import Moment
from stalwart.objectives.pgd_at import PGDAT


@dataclass(frozen=True, kw_only=True)
class A3T(PGDAT):
    """min E CE(f(x'), y) with x' = argmax CE(f(x'), ŷ), ŷ the class that the network gives the clean input.

    It differs from adversarial training on misclassified inputs alone.
    Source: arXiv 2211.16316, code.
    """

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Attack the cross entropy of the predicted class from a random start."""
        with evaluating(model), torch.no_grad():
            believed = model(x).argmax(-1)
        return super().craft(model, x, believed, moment)
