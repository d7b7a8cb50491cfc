"""Sharpness-aware minimisation, plain and adaptive."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.attacks.weight_steps import climbed
from stalwart.core.numbers import Number, require
from stalwart.objectives.moved import AtMovedWeights, Slopes


@dataclass(frozen=True, kw_only=True)
class SAM(AtMovedWeights):
    """The base loss at w + v, v the worst constant shift of the loss's linear approximation.

        SAM:   v = rho g / ||g||_2
        ASAM:  v = rho T² g / ||T g||_2,  T = |w| + floor

    Source: Foret et al., ICLR 2021 (arXiv 2010.01412), equation 2; Kwon et al., ICML 2021 (arXiv 2102.11600), section 3.

    Attributes:
        rho: radius: about 0.05 for SAM, ten times as much for ASAM.
        adaptive: whether the neighbourhood scales with the weights.
        floor: what is added to |w| in it, so that small weights move too.
    """

    only: str | tuple[str, ...] = "*"
    rho: Number = 0.05
    adaptive: bool = False
    floor: Number = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rho > 0, f"rho must be positive, got {self.rho}.")
        require(self.floor >= 0, f"floor must be at least 0, got {self.floor}.")

    def move(
        self, weights: Mapping[str, Tensor], slopes: Slopes, generator: Callable[[str], torch.Generator]
    ) -> dict[str, Tensor]:
        """Return the weights after the one step."""
        found = slopes(weights)
        if not self.adaptive:
            return climbed(weights, found, self.rho)
        scales = {name: weight.abs() + self.floor for name, weight in weights.items()}
        zero = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        unit = climbed(zero, {name: scales[name] * slope for name, slope in found.items()}, self.rho)
        return {name: weight + scales[name] * unit[name] for name, weight in weights.items()}
