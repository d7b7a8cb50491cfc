"""VGG networks in the form that converts to spikes: average pooling, no biases."""

import dataclasses

from torch import nn

from stalwart.core.numbers import require
from stalwart.models.stack import Stack


@dataclasses.dataclass(frozen=True)
class _VGG:
    """What both share.

    Args:
        dropout: probability of dropout, in [0, 1).

    Raises:
        UsageError: the probability is out of range.
    """

    dropout: float = 0.2

    def __post_init__(self) -> None:
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout:g}.")


@dataclasses.dataclass(frozen=True)
class VGG5(_VGG):
    """3x3 convolutions 64-A-128-dropout-128-A (A: 2x2 average pooling), then linear layers 1024-1024; ReLU after all.

    No biases and no batch norm, which would disturb the balancing of thresholds.

    Args:
        dropout: probability of dropout, in [0, 1).

    Raises:
        UsageError: the probability is out of range.

    Source: Sharmin et al., "Inherent adversarial robustness of deep spiking neural networks", ECCV 2020, code.
    """

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, 1024] and 1024; UsageError for images below 4x4."""
        stack = Stack("vgg5", shape)
        stack.conv(64, 3, padding=1, bias=False)
        stack.pool(nn.AvgPool2d)
        stack.conv(128, 3, padding=1, bias=False)
        stack.dropout(self.dropout)
        stack.conv(128, 3, padding=1, bias=False)
        stack.pool(nn.AvgPool2d)
        stack.dense(1024, bias=False)
        stack.dense(1024, bias=False)
        return stack.done()


@dataclasses.dataclass(frozen=True)
class VGG11(_VGG):
    """3x3 convolutions 64-A-128-256-A-512-512-512-A-512-512 (A: 2x2 average pooling), then linear layers 4096-4096.

    Batch norm and ReLU after every convolution, ReLU and dropout after every linear layer, no biases.

    Args:
        dropout: probability of dropout, in [0, 1).

    Raises:
        UsageError: the probability is out of range.

    Source: Özdenizci and Legenstein, "Adversarially robust spiking neural networks through conversion", TMLR 2024, code.
    """

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, 4096] and 4096; UsageError for images below 8x8."""
        stack = Stack("vgg11", shape)
        for group in ((64,), (128, 256), (512, 512, 512), (512, 512)):
            if len(stack.layers):
                stack.pool(nn.AvgPool2d)
            for width in group:
                stack.conv(width, 3, padding=1, bias=False, norm=True)
        for _ in range(2):
            stack.dense(4096, bias=False)
            stack.dropout(self.dropout)
        return stack.done()


@dataclasses.dataclass(frozen=True)
class SmallVGG:
    """3x3 convolutions 8-A-16-A (A: 2x2 average pooling) with batch norm and a linear layer of 64, ReLU after all three.

    Args:
        width: channels of the first convolution; the second has twice as many.
        hidden: width of the linear layer.

    Raises:
        UsageError: a width below 1.
    """

    width: int = 8
    hidden: int = 64

    def __post_init__(self) -> None:
        require(self.width >= 1, f"width must be at least 1, got {self.width}.")

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, hidden] and hidden; UsageError for images below 4x4."""
        stack = Stack("vgg-small", shape)
        for width in (self.width, 2 * self.width):
            stack.conv(width, 3, padding=1, bias=False, norm=True)
            stack.pool(nn.AvgPool2d)
        stack.dense(self.hidden)
        return stack.done()
