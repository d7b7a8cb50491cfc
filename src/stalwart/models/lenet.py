"""LeNet++: six wide convolutions without pooling."""

import dataclasses

from torch import nn

from stalwart.models.stack import Stack


@dataclasses.dataclass(frozen=True)
class LeNetPP:
    """Six 5x5 valid convolutions (32, 32, 64, 64, 128, 128), PReLU after each, and a linear layer to D features.

    The last layer has no activation. Images need at least 25x25 pixels; 28x28 leaves 2048 values before the last layer.

    Args:
        features: D, the width of the features.

    Source: Eustratiadis et al., "Weight-covariance alignment for adversarially robust neural networks", ICML 2021, code.
    """

    features: int = 32

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, D] and D; UsageError if the images are too small."""
        stack = Stack("LeNet++", shape)
        for width in (32, 32, 64, 64, 128, 128):
            stack.conv(width, 5, activation=lambda _: nn.PReLU())
        stack.dense(self.features, activation=None)
        return stack.done()
