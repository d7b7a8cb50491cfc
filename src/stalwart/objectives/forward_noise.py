"""Training under random noise on the weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stalwart.attacks.weight_steps import started
from stalwart.core.numbers import Number, require
from stalwart.core.random import normal
from stalwart.objectives.moved import AtMovedWeights, Slopes
from stalwart.sets import RelativeBox


@dataclass(frozen=True, kw_only=True)
class ForwardNoise(AtMovedWeights):
    """The base loss at w + v, noise v drawn afresh for each batch and taken for a constant, with R ~ N(0, 1):

        gaussian:  v = eta |w| R
        range:     v = eta max|w| R     the maximum over the tensor

    Source: Murray and Edwards, 1994 (IEEE Transactions on Neural Networks 5(5)), in the relative form of Büchel, Faber, Muir,
    ICLR 2022 (arXiv 2106.05009), equation 1; range: Joshi et al., "Accurate deep neural network inference using computational
    phase-change memory", 2020.

    Attributes:
        eta: standard deviation of the noise as a share of |w|, or of max|w|.
        mode: which of both, as in :class:`stalwart.hardware.Mismatch`.
    """

    eta: Number = 0.3
    mode: Literal["gaussian", "range"] = "gaussian"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.eta >= 0, f"eta must be at least 0, got {self.eta}.")

    def move(
        self, weights: Mapping[str, Tensor], slopes: Slopes, generator: Callable[[str], torch.Generator]
    ) -> dict[str, Tensor]:
        """Return the weights with noise."""
        source = generator("forward-noise")
        if self.mode == "gaussian":
            return noisy(weights, self.eta, source)
        return {
            name: w + self.eta * w.abs().max() * normal(w.shape, source, w, batch_axis=None)
            for name, w in weights.items()
        }


def noisy(weights: Mapping[str, Tensor], eta: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Return w + eta |w| R by name; a Gaussian leaves any box, so that none is projected on."""
    return started(weights, RelativeBox(1.0), eta, False, generator)
