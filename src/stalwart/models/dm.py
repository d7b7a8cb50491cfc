"""The standard networks of certified training: DM-small, -medium and -large, CNN-7 with batch norm, and two small ones.

An activation after every layer. Sources: Gowal et al., "On the effectiveness of interval bound propagation for training
verifiably robust models", 2018; paddings of the DM networks as in the code of Lyu et al., "Towards evaluating and training
verifiably robust neural networks", CVPR 2021.
"""

import dataclasses

from torch import nn

from stalwart.models.activations import Activated
from stalwart.models.stack import Stack

# One convolution: channels, kernel, stride, padding.
_Plan = tuple[tuple[int, int, int, int], ...]
_LARGE: _Plan = ((64, 3, 1, 1), (64, 3, 1, 1), (128, 3, 2, 1), (128, 3, 1, 1), (128, 3, 1, 1))


@dataclasses.dataclass(frozen=True)
class _Planned(Activated):
    """What all share: ``activation`` and ``eta``, see :class:`stalwart.models.activations.Activated`."""

    def _build(
        self, what: str, shape: tuple[int, ...], plan: _Plan, dense: tuple[int, ...], norm: bool = False
    ) -> tuple[nn.Module, int]:
        stack = Stack(what, shape)
        for width, kernel, stride, padding in plan:
            stack.conv(width, kernel, stride, padding, norm=norm, activation=self.activate)
        for width in dense:
            stack.dense(width, norm=norm, activation=self.activate)
        return stack.done()


@dataclasses.dataclass(frozen=True)
class DMSmall(_Planned):
    """Convolutions of 16 (4x4, stride 2) and 32 (4x4) channels, one linear layer of 100."""

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, 100] and 100."""
        return self._build("dm-small", shape, ((16, 4, 2, 2), (32, 4, 1, 2)), (100,))


@dataclasses.dataclass(frozen=True)
class DMMedium(_Planned):
    """Convolutions of 32 (3x3), 32 (4x4, stride 2), 64 (3x3), 64 (4x4, stride 2) channels, two linear layers of 512."""

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, 512] and 512."""
        plan = ((32, 3, 1, 1), (32, 4, 2, 2), (64, 3, 1, 1), (64, 4, 2, 2))
        return self._build("dm-medium", shape, plan, (512, 512))


@dataclasses.dataclass(frozen=True)
class DMLarge(_Planned):
    """Five 3x3 convolutions of 64, 64, 128 (stride 2), 128, 128 channels, one linear layer of 512."""

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, 512] and 512."""
        return self._build("dm-large", shape, _LARGE, (512,))


@dataclasses.dataclass(frozen=True)
class CNN7(_Planned):
    """DM-large with batch norm before every activation, that of the linear layer too.

    Source: Shi et al., "Fast certified robust training with short warmup", NeurIPS 2021 (arXiv 2103.17268), whose form
    later work follows; Lyu et al. print a stride of 2 at the fifth convolution.
    """

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, 512] and 512."""
        return self._build("cnn7-bn", shape, _LARGE, (512,), norm=True)


@dataclasses.dataclass(frozen=True)
class SmallCifar(_Planned):
    """Two 3x3 convolutions of 64 channels, the second with stride 2, one linear layer of 512."""

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, 512] and 512."""
        return self._build("small-cifar", shape, ((64, 3, 1, 1), (64, 3, 2, 1)), (512,))


@dataclasses.dataclass(frozen=True)
class SmallMnist(_Planned):
    """Convolutions of 16 (3x3), 16 (4x4, stride 2), 32 (3x3), 32 (4x4, stride 2) channels, one linear layer of 512.

    The paddings, which the paper does not print, are 1: 4x4 kernels halve the image.
    """

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, C, H, W] -> [B, 512] and 512."""
        plan = ((16, 3, 1, 1), (16, 4, 2, 1), (32, 3, 1, 1), (32, 4, 2, 1))
        return self._build("small-mnist", shape, plan, (512,))
