"""Training under random noise on the weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.attacks.weight_steps import started
from stalwart.core.numbers import Number, require
from stalwart.objectives.moved import AtMovedWeights, Slopes
from stalwart.sets import RelativeBox


@dataclass(frozen=True, kw_only=True)
class ForwardNoise(AtMovedWeights):
    """The base loss at w + eta |w| R with R ~ N(0, 1), drawn afresh for each batch; the noise is a constant.

    Source: Murray and Edwards, 1994 (IEEE Transactions on Neural Networks 5(5)), in the relative form of Büchel, Faber, Muir,
    ICLR 2022 (arXiv 2106.05009), equation 1.

    Attributes:
        eta: standard deviation of the noise as a share of |w|.
    """

    eta: Number = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.eta >= 0, f"eta must be at least 0, got {self.eta}.")

    def move(
        self, weights: Mapping[str, Tensor], slopes: Slopes, generator: Callable[[str], torch.Generator]
    ) -> dict[str, Tensor]:
        """Return the weights with noise."""
        return noisy(weights, self.eta, generator("forward-noise"))


def noisy(weights: Mapping[str, Tensor], eta: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Return w + eta |w| R by name; a Gaussian leaves any box, so that none is projected on."""
    return started(weights, RelativeBox(1.0), eta, False, generator)
