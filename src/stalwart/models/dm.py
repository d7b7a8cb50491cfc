"""DM-small, -medium and -large: the standard networks of certified training.

ReLU after every layer. Source: Gowal et al., "On the effectiveness of interval bound propagation for training verifiably
robust models", 2018; paddings as in the code of Lyu et al., "Towards evaluating and training verifiably robust neural
networks", CVPR 2021.
"""

import dataclasses

from torch import nn

from stalwart.models.stack import Stack

# One convolution: channels, kernel, stride, padding.
_Plan = tuple[tuple[int, int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class DMSmall:
    """Convolutions of 16 (4x4, stride 2) and 32 (4x4) channels, one linear layer of 100."""

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, 100] and 100."""
        return _build("dm-small", shape, ((16, 4, 2, 2), (32, 4, 1, 2)), (100,))


@dataclasses.dataclass(frozen=True)
class DMMedium:
    """Convolutions of 32 (3x3), 32 (4x4, stride 2), 64 (3x3), 64 (4x4, stride 2) channels, two linear layers of 512."""

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, 512] and 512."""
        return _build("dm-medium", shape, ((32, 3, 1, 1), (32, 4, 2, 2), (64, 3, 1, 1), (64, 4, 2, 2)), (512, 512))


@dataclasses.dataclass(frozen=True)
class DMLarge:
    """Five 3x3 convolutions of 64, 64, 128 (stride 2), 128, 128 channels, one linear layer of 512."""

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, 512] and 512."""
        plan = ((64, 3, 1, 1), (64, 3, 1, 1), (128, 3, 2, 1), (128, 3, 1, 1), (128, 3, 1, 1))
        return _build("dm-large", shape, plan, (512,))


def _build(what: str, shape: tuple[int, ...], plan: _Plan, dense: tuple[int, ...]) -> tuple[nn.Module, int]:
    stack = Stack(what, shape)
    for width, kernel, stride, padding in plan:
        stack.conv(width, kernel, stride, padding)
    for width in dense:
        stack.dense(width)
    return stack.done()
