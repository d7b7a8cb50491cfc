"""Residual networks for small images: a 3x3 stem without pooling.

Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016.
"""

import dataclasses

from jaxtyping import Float
from torch import Tensor, nn

from stalwart.core.numbers import require
from stalwart.models.stack import check_shape


class BasicBlock(nn.Module):
    """y = relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), 3x3 convolutions, the first with the stride.

    The shortcut is the identity, or a 1x1 convolution and batch norm where the shape changes.
    """

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        # Two ReLU modules, not one twice: a conversion gives each activation a threshold of its own.
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Float[Tensor, " batch inside height across"]) -> Float[Tensor, " batch width up along"]:
        """Map [B, C, H, W] to [B, C', H', W']."""
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(inner + self.shortcut(x))


@dataclasses.dataclass(frozen=True)
class _ResNet:
    """What all share.

    Args:
        features: D; 0 keeps the pooled channels as features, any other adds a linear layer to D and ReLU.

    Raises:
        UsageError: ``features`` is negative.
    """

    features: int = 0

    def __post_init__(self) -> None:
        require(self.features >= 0, f"features must be at least 0, got {self.features}.")

    def _build(self, what: str, shape: tuple[int, ...], stages: tuple[int, ...], blocks: int) -> tuple[nn.Module, int]:
        check_shape(what, shape)
        width = stages[0]
        layers: list[nn.Module] = [nn.Conv2d(shape[0], width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        for stage, following in enumerate(stages):
            for block in range(blocks):
                layers.append(BasicBlock(width, following, 2 if stage > 0 and block == 0 else 1))
                width = following
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        if self.features:
            layers += [nn.Linear(width, self.features), nn.ReLU()]
            width = self.features
        return nn.Sequential(*layers), width


@dataclasses.dataclass(frozen=True)
class ResNet18(_ResNet):
    """Stages of 64, 128, 256, 512 channels with two blocks each, global average pooling; 11.17 M parameters for CIFAR-10.

    Args:
        features: D; 0 keeps the 512 pooled channels as features, any other adds a linear layer to D and ReLU.

    Raises:
        UsageError: ``features`` is negative.
    """

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, D] and D."""
        return self._build("resnet18", shape, (64, 128, 256, 512), 2)


@dataclasses.dataclass(frozen=True)
class ResNet20(_ResNet):
    """Stages of 16, 32, 64 channels with three blocks each, global average pooling; 0.27 M parameters for CIFAR-10.

    Shortcuts that change the shape are 1x1 convolutions; the original pads with zeros.

    Args:
        features: D; 0 keeps the 64 pooled channels as features, any other adds a linear layer to D and ReLU.

    Raises:
        UsageError: ``features`` is negative.
    """

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, D] and D."""
        return self._build("resnet20", shape, (16, 32, 64), 3)


@dataclasses.dataclass(frozen=True)
class ResNet32(_ResNet):
    """Stages of 16, 32, 64 channels with five blocks each, global average pooling; 0.47 M parameters for CIFAR-10.

    Shortcuts that change the shape are 1x1 convolutions; the original pads with zeros.

    Args:
        features: D; 0 keeps the 64 pooled channels as features, any other adds a linear layer to D and ReLU.

    Raises:
        UsageError: ``features`` is negative.
    """

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, D] and D."""
        return self._build("resnet32", shape, (16, 32, 64), 5)
