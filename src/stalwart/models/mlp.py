"""The multi-layer perceptron, for inputs of any shape."""

import dataclasses
import math

from torch import nn

from stalwart.core.numbers import require
from stalwart.models.activations import Activated
from stalwart.models.stack import DenseDropout, check_shape


@dataclasses.dataclass(frozen=True)
class MLP(Activated, DenseDropout):
    """Flatten, then linear layers with an activation after each; without hidden layers the classifier is linear.

    Args:
        widths: the width of each hidden layer; the last is D.
        activation, eta: as :class:`stalwart.models.activations.Activated` says.
        dropout: as :class:`stalwart.models.stack.DenseDropout` says.

    Raises:
        UsageError: a width below 1, or a slope or a probability out of range.
    """

    widths: tuple[int, ...] = (128, 64)

    def __post_init__(self) -> None:
        Activated.__post_init__(self)
        DenseDropout.__post_init__(self)
        require(all(width >= 1 for width in self.widths), f"every width must be at least 1, got {self.widths}.")

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, ...] -> [B, D] and D."""
        check_shape("mlp", shape, image=False)
        width = math.prod(shape)
        layers: list[nn.Module] = [nn.Flatten()]
        for following in self.widths:
            layers += [nn.Linear(width, following), self.activate((following,))]
            if self.dropout:
                layers.append(nn.Dropout(self.dropout))
            width = following
        return nn.Sequential(*layers), width
