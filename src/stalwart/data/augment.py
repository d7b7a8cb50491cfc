"""Random crop, flip and cutout of a whole batch at once, on its own device."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from stalwart.core.errors import InputError
from stalwart.core.numbers import require
from stalwart.core.random import uniform


@dataclass(frozen=True)
class Augment:
    """Augment a batch of images: random crop, then horizontal flip, then cutout.

    Args:
        crop: zero padding on each side, in pixels, before a crop of the original size (4 is usual for 32 x 32); 0: off.
        flip: mirror each image with probability 1/2.
        cutout: side of the square set to zero, in pixels; 0: off.

    Raises:
        UsageError: a negative size.
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        require(self.crop >= 0, f"augmentation option 'crop' is a padding in pixels, 0 or more, got {self.crop}.")
        require(self.cutout >= 0, f"augmentation option 'cutout' is a size in pixels, 0 or more, got {self.cutout}.")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return augmented images [B, C, H, W]; ``x`` is left as it was.

        Args:
            x: images [B, C, H, W].
            generator: the source of randomness, on the device of ``x``.

        Raises:
            InputError: ``x`` is not a batch of images.
        """
        if self.crop:
            x = random_crop(x, self.crop, generator)
        if self.flip:
            x = random_flip(x, generator)
        return cutout(x, self.cutout, generator) if self.cutout else x


def random_crop(x: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad each image with zeros and cut a window of the original size: out[i, j] = padded[i + dy, j + dx].

    dy and dx are uniform on 0..2 ``padding``, drawn per image as a pair (dy, dx).

    Args:
        x: images [B, C, H, W].
        padding: pixels on each side, at least 1.
        generator: the source of randomness, on the device of ``x``.

    Raises:
        InputError: ``x`` is not a batch of images.
    """
    _require_images(x)
    _, channels, height, width = x.shape
    shift = _integers(x, 2, 2 * padding + 1, generator)
    rows = torch.arange(height, device=x.device) + shift[:, :1]
    columns = torch.arange(width, device=x.device) + shift[:, 1:]
    padded = pad(x, (padding,) * 4)
    # One flat gather per image; the index is shared by all channels.
    index = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]
    index = index.flatten(1)[:, None].expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).view(x.shape)


def random_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right where its draw from U[0, 1) is below 1/2.

    Args:
        x: images [B, C, H, W].
        generator: the source of randomness, on the device of ``x``.

    Raises:
        InputError: ``x`` is not a batch of images.
    """
    _require_images(x)
    mirrored = _integers(x, 1, 2, generator) == 0
    return torch.where(mirrored[:, :, None, None], x.flip(-1), x)


def cutout(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Set a square of each image to zero; its centre is uniform over the image, so part of it may lie outside.

    Rows cy - size // 2 to cy - size // 2 + size - 1, columns likewise; (cy, cx) is drawn per image.

    Source: DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017, section 3.2.

    Args:
        x: images [B, C, H, W].
        size: side of the square in pixels, at least 1.
        generator: the source of randomness, on the device of ``x``.

    Raises:
        InputError: ``x`` is not a batch of images.
    """
    _require_images(x)
    draws = _uniform(x, 2, generator)
    inside = []
    for axis, length in enumerate(x.shape[-2:]):
        first = _floor(draws[:, axis : axis + 1], length) - size // 2
        position = torch.arange(length, device=x.device)
        inside.append((position >= first) & (position < first + size))
    hole = inside[0][:, :, None] & inside[1][:, None, :]
    return x.masked_fill(hole[:, None], 0)


def _require_images(x: Tensor) -> None:
    if x.dim() != 4:
        raise InputError(
            f"augmentation needs images [B, C, H, W], got shape {list(x.shape)}; switch it off for this data."
        )


def _uniform(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return uniform((len(x), count), generator, like=torch.empty((), device=x.device))


def _floor(draws: Tensor, below: int) -> Tensor:
    # The largest float below 1, times ``below``, may round up to ``below`` itself.
    return (draws * below).long().clamp_(max=below - 1)


def _integers(x: Tensor, count: int, below: int, generator: torch.Generator) -> Tensor:
    return _floor(_uniform(x, count, generator), below)
