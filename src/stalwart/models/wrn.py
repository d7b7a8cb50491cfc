"""Wide residual networks.

Source: Zagoruyko and Komodakis, "Wide residual networks", BMVC 2016.
"""

import dataclasses

from jaxtyping import Float
from torch import Tensor, nn

from stalwart.core.numbers import require
from stalwart.models.stack import check_shape


class PreActivationBlock(nn.Module):
    """y = conv(drop(relu(bn(conv(a))))) + shortcut with a = relu(bn(x)), 3x3 convolutions, the first with the stride.

    The shortcut is x, or a 1x1 convolution of a where the width changes.
    """

    def __init__(self, inside: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = None if inside == width else nn.Conv2d(inside, width, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, " batch inside height across"]) -> Float[Tensor, " batch width up along"]:
        """Map [B, C, H, W] to [B, C', H', W']."""
        active = self.relu1(self.bn1(x))
        inner = self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(active)))))
        return inner + (x if self.shortcut is None else self.shortcut(active))


@dataclasses.dataclass(frozen=True)
class WideResNet:
    """Three stages of 16, 32 and 64 times ``widen`` channels with (depth - 4) / 6 blocks each; D = 64 * widen.

    Args:
        depth: number of layers, 6 n + 4 with n >= 1.
        widen: factor on the channels, at least 1.
        dropout: probability of dropout inside each block, in [0, 1).

    Raises:
        UsageError: a value out of range.
    """

    depth: int
    widen: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.depth >= 10 and self.depth % 6 == 4, f"depth must be 10, 16, 22, 28, ..., got {self.depth}.")
        require(self.widen >= 1, f"widen must be at least 1, got {self.widen}.")
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout:g}.")

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, 64 * widen] and its width."""
        check_shape("a wide ResNet", shape)
        layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, 1, 1, bias=False)]
        width = 16
        for stage, following in enumerate((16 * self.widen, 32 * self.widen, 64 * self.widen)):
            for block in range((self.depth - 4) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(PreActivationBlock(width, following, stride, self.dropout))
                width = following
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers), width


@dataclasses.dataclass(frozen=True)
class WRN16x4(WideResNet):
    """WideResNet with 16 layers and four times the channels; 2.7 M parameters for CIFAR-10."""

    depth: int = 16
    widen: int = 4


@dataclasses.dataclass(frozen=True)
class WRN28x10(WideResNet):
    """WideResNet with 28 layers and ten times the channels; 36.5 M parameters for CIFAR-10."""

    depth: int = 28
    widen: int = 10


@dataclasses.dataclass(frozen=True)
class WRN34x10(WideResNet):
    """WideResNet with 34 layers and ten times the channels; 46.2 M parameters for CIFAR-10."""

    depth: int = 34
    widen: int = 10
