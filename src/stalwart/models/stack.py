"""A builder of plain stacks of layers that knows the shape behind each layer."""

import dataclasses
import math
from collections.abc import Sequence

from torch import nn

from stalwart.core.errors import UsageError
from stalwart.core.numbers import Number, require
from stalwart.models.activations import Activation, relu


def check_shape(what: str, shape: Sequence[int], image: bool = True) -> None:
    """Refuse input shapes a model cannot have.

    Args:
        what: the model's name, for the message.
        shape: the shape of one input, without the batch.
        image: whether it must be [C, H, W].

    Raises:
        UsageError: not positive integers, or not three of them for an image model.
    """
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in shape)
    require(
        whole and len(shape) > 0, f"an input's shape must be positive integers such as (1, 28, 28), got {tuple(shape)}."
    )
    if image and len(shape) != 3:
        raise UsageError(
            f"{what} takes images (channels, height, width), got {tuple(shape)}; for other inputs use 'mlp'."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseDropout:
    """What architectures share that may drop activations of their linear layers, the features included.

    Args:
        dropout: probability of dropout behind each linear layer of the backbone, in [0, 1); without it no layer is added.

    Raises:
        UsageError: the probability is out of range.
    """

    dropout: Number = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout:g}.")


class Stack:
    """Layers in a row; every method appends some and keeps :attr:`shape`, the shape of one sample behind them.

    Args:
        what: the model's name, for messages.
        shape: the shape [C, H, W] of one input.

    Raises:
        UsageError: the shape is not that of an image, or a layer no longer fits because the image is too small.
    """

    def __init__(self, what: str, shape: tuple[int, ...]) -> None:
        check_shape(what, shape)
        self.what = what
        self.input = shape
        self.shape = shape
        self.layers: list[nn.Module] = []

    def conv(
        self,
        width: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        norm: bool = False,
        activation: Activation = relu,
    ) -> None:
        """Append a square convolution to ``width`` channels, batch norm if asked for, and the activation."""
        height, across = (self._fit(side, kernel, stride, padding) for side in self.shape[1:])
        self.layers.append(nn.Conv2d(self.shape[0], width, kernel, stride, padding, bias=bias))
        if norm:
            self.layers.append(nn.BatchNorm2d(width))
        self.shape = (width, height, across)
        self.layers.append(activation(self.shape))

    def pool(self, kind: type[nn.MaxPool2d] | type[nn.AvgPool2d]) -> None:
        """Append 2x2 pooling with stride 2; an odd last row or column is dropped."""
        height, across = (self._fit(side, 2, 2, 0) for side in self.shape[1:])
        self.layers.append(kind(2))
        self.shape = (self.shape[0], height, across)

    def pad(self, before: int, after: int) -> None:
        """Append rows and columns of zeros: ``before`` above and on the left, ``after`` below and on the right."""
        self.layers.append(nn.ZeroPad2d((before, after, before, after)))
        self.shape = (self.shape[0], *(side + before + after for side in self.shape[1:]))

    def dense(
        self,
        width: int,
        bias: bool = True,
        norm: bool = False,
        activation: Activation | None = relu,
        dropout: float = 0.0,
    ) -> None:
        """Append a fully connected layer (flattening before the first one), and what is asked for behind it.

        That is batch norm, the activation, and dropout with probability ``dropout``.
        """
        require(width >= 1, f"{self.what}: a layer's width must be at least 1, got {width}.")
        if len(self.shape) > 1:
            self.layers.append(nn.Flatten())
        self.layers.append(nn.Linear(math.prod(self.shape), width, bias=bias))
        self.shape = (width,)
        if norm:
            self.layers.append(nn.BatchNorm1d(width))
        if activation is not None:
            self.layers.append(activation(self.shape))
        if dropout:
            self.dropout(dropout)

    def dropout(self, rate: float) -> None:
        """Append dropout, of whole activations, with probability ``rate``."""
        self.layers.append(nn.Dropout(rate))

    def done(self) -> tuple[nn.Module, int]:
        """Return the layers as one module and the width of its output."""
        return nn.Sequential(*self.layers), self.shape[0]

    def _fit(self, side: int, kernel: int, stride: int, padding: int) -> int:
        out = (side + 2 * padding - kernel) // stride + 1
        require(
            out >= 1,
            f"{self.what} cannot take images of shape {self.input}: a layer with a {kernel}x{kernel} window is left "
            f"with a side of {side}. Use larger images or a smaller model.",
        )
        return out
