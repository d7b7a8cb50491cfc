"""Two small convolutional networks that train in a minute on a laptop."""

import dataclasses
import math

from torch import nn

from stalwart.models.stack import Stack


@dataclasses.dataclass(frozen=True)
class SmallCNN:
    """Two 5x5 convolutions of stride 2 (16 and 32 channels) and two linear layers, ReLU after all.

    Args:
        hidden: width of the first linear layer.
        features: D, the width of the features.
    """

    hidden: int = 128
    features: int = 32

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, D] and D."""
        stack = Stack("small-cnn", shape)
        stack.conv(16, 5, stride=2, padding=2)
        stack.conv(32, 5, stride=2, padding=2)
        stack.dense(self.hidden)
        stack.dense(self.features)
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
class PooledCNN:
    """Two 3x3 convolutions (32 and 64 channels), each followed by ReLU and 2x2 max pooling, and one linear layer, ReLU.

    Args:
        features: D, the width of the features.
    """

    features: int = 128

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, D] and D; UsageError for images below 4x4."""
        stack = Stack("pooled-cnn", shape)
        for width in (32, 64):
            stack.conv(width, 3, padding=1)
            stack.pool(nn.MaxPool2d)
        stack.dense(self.features)
        return stack.done()
