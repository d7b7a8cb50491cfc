"""The order of images in memory."""

import torch
from torch import Tensor


def has_channels_last(x: Tensor) -> bool:
    """Tell whether x are images [B, C, H, W] with channels last in memory, and not first as well."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def has_no_gaps(x: Tensor) -> bool:
    """Tell whether x has entries, and they lie side by side in memory in an order that :func:`as_stored` knows."""
    return x.numel() > 0 and (x.is_contiguous() or has_channels_last(x))


def as_stored(tensor: Tensor, like: Tensor) -> Tensor:
    """Return ``tensor`` in the order that ``like`` has in memory: [B, H, W, C] for channels last."""
    return (tensor.permute(0, 2, 3, 1) if has_channels_last(like) else tensor).contiguous()


def channels_last(x: Tensor) -> Tensor:
    """Return images [B, C, H, W] with channels last in memory; values and shape are unchanged.

    On the CPU convolutions run up to 1.7 times faster so.
    """
    _, channels, height, width = x.shape
    if channels > 1:
        return x.contiguous(memory_format=torch.channels_last)
    # With one channel both layouts hold the same bytes, and torch would not touch the strides by itself.
    return x.contiguous().as_strided(x.shape, (height * width, 1, width, 1))
