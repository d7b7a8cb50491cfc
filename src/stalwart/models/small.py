"""Small convolutional networks."""

import dataclasses
import math

from torch import nn

from stalwart.core.layers import WEIGHTED
from stalwart.models.stack import DenseDropout, Stack


@dataclasses.dataclass(frozen=True)
class SmallCNN(DenseDropout):
    """Two 5x5 convolutions of stride 2 (16 and 32 channels) and two linear layers, ReLU after all.

    Args:
        hidden: width of the first linear layer.
        features: D, the width of the features.
        dropout: as :class:`stalwart.models.stack.DenseDropout` says.
    """

    hidden: int = 128
    features: int = 32

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, D] and D."""
        stack = Stack("small-cnn", shape)
        stack.conv(16, 5, stride=2, padding=2)
        stack.conv(32, 5, stride=2, padding=2)
        stack.dense(self.hidden, dropout=self.dropout)
        stack.dense(self.features, dropout=self.dropout)
        return stack.done()


@dataclasses.dataclass(frozen=True)
class StridedCNN:
    """Two 3x3 convolutions of stride 2 (16 and 32 channels) without biases, ReLU after both; its output is flattened."""

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, D] and D."""
        stack = Stack("strided-cnn", shape)
        for width in (16, 32):
            stack.conv(width, 3, stride=2, padding=1, bias=False)
        return nn.Sequential(*stack.layers, nn.Flatten()), math.prod(stack.shape)


@dataclasses.dataclass(frozen=True)
class PooledCNN(DenseDropout):
    """Two 3x3 convolutions (32 and 64 channels), each followed by ReLU and 2x2 max pooling, and one linear layer, ReLU.

    Args:
        features: D, the width of the features.
        dropout: as :class:`stalwart.models.stack.DenseDropout` says.
    """

    features: int = 128

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, D] and D; UsageError for images below 4x4."""
        stack = Stack("pooled-cnn", shape)
        for width in (32, 64):
            stack.conv(width, 3, padding=1)
            stack.pool(nn.MaxPool2d)
        stack.dense(self.features, dropout=self.dropout)
        return stack.done()


@dataclasses.dataclass(frozen=True)
class BuchelCNN(DenseDropout):
    """Two 4x4 convolutions, each with ReLU and 2x2 max pooling, and two linear layers, ReLU after both.

    The first convolution keeps the size of the image; its even kernel pads one row before and two after. With 28x28 pixels the
    linear layers are 1600-256-64-K wide, half a million parameters in all. Initial weights are Glorot's, uniform, and biases 0;
    the head has PyTorch's own.
    Source: Büchel, Faber, Muir, ICLR 2022 (arXiv 2106.05009), appendix, network for Fashion-MNIST.

    Args:
        channels: of the two convolutions.
        hidden: width of the first linear layer; null for one layer less.
        features: D, the width of the features.
        dropout: as :class:`stalwart.models.stack.DenseDropout` says.
    """

    channels: tuple[int, int] = (64, 64)
    hidden: int | None = 256
    features: int = 64

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, D] and D; UsageError for images below 10x10."""
        stack = Stack("buchel-cnn", shape)
        stack.pad(1, 2)
        for width in self.channels:
            stack.conv(width, 4)
            stack.pool(nn.MaxPool2d)
        if self.hidden is not None:
            stack.dense(self.hidden, dropout=self.dropout)
        stack.dense(self.features, dropout=self.dropout)
        backbone, width = stack.done()
        for layer in backbone.modules():
            if isinstance(layer, WEIGHTED):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        return backbone, width
