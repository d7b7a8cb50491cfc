"""Traces of processing: contrast, colours, bent and coarse images, compression."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stalwart.core.random import uniform
from stalwart.data.corruptions.base import Corruption, Scale
from stalwart.data.corruptions.sampling import read_at, smooth

_PUBLISHED, _WRITTEN = 224, 244
"""Pixels of a side that the parameters of large images are for, and those that their formula names."""


def contrast(x: Tensor, share: float) -> Tensor:
    """Return m + share·(x - m), m the mean of each channel of each image [B, C, H, W]."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + share * (x - mean)


def saturate(x: Tensor, factor: float, plus: float) -> Tensor:
    """Return images [B, 3, H, W] whose saturation S becomes min(factor·S + plus, 1) at equal hue and value; grey is a red."""
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    tiny = torch.finfo(x.dtype).tiny
    target = (factor * chroma / value.clamp_min(tiny) + plus).clamp(0, 1)
    red = x.new_tensor((0.0, 1.0, 1.0))[:, None, None]
    away = torch.where(chroma > 0, (value - x) / chroma.clamp_min(tiny), red)
    return value * (1 - target * away)


def elastic_transform(x: Tensor, bend: float, sigma: float, tilt: float, source: torch.Generator) -> Tensor:
    """Return images [B, C, H, W] sheared and then bent: each pixel is read from near where it was.

    The shear maps three points, a third of the shorter side from the centre, to points off by U(-tilt, tilt) in both
    directions; the field of the bend is U(-1, 1), smoothed and multiplied.

    Args:
        x: images.
        bend: factor of the smoothed field, in pixels.
        sigma: standard deviation of the smoothing, in pixels.
        tilt: in pixels.
        source: the source of randomness.

    Source: Simard, Steinkraus and Platt, "Best practices for convolutional neural networks applied to visual document
    analysis", 2003, section 2.
    """
    batch, height, width = len(x), *x.shape[-2:]
    middle = torch.tensor((width // 2, height // 2), dtype=x.dtype, device=x.device)
    side = min(height, width) // 3
    corners = x.new_tensor(((side, side), (side, -side), (-side, -side)))
    before = middle + corners
    after = before + tilt * (2 * uniform((batch, 3, 2), source, x) - 1)
    ones = torch.ones(batch, 3, 1, dtype=x.dtype, device=x.device)
    # Where each pixel of the sheared image was: (x, y, 1) of the image after, times this [3, 2], is (x, y) before.
    rows = torch.arange(height, device=x.device, dtype=x.dtype)[:, None].expand(height, width)
    columns = torch.arange(width, device=x.device, dtype=x.dtype).expand(height, width)
    if side:  # images of less than three pixels have no triangle to shear
        frame = torch.cat([after, ones], 2).double()
        back = torch.linalg.solve(frame, before.double().expand(batch, 3, 2))
        grid = torch.stack([columns, rows, torch.ones_like(rows)], -1)
        was = (grid.flatten(0, 1).double() @ back).to(x.dtype).view(batch, height, width, 2)
        x = read_at(x, was[..., 1], was[..., 0], "reflect")
    field = bend * smooth(2 * uniform((batch, 2, height, width), source, x) - 1, sigma, "symmetric", truncate=3.0)
    return read_at(x, rows + field[:, 1], columns + field[:, 0], "symmetric")


def pixelate(x: Tensor, share: float) -> Tensor:
    """Return images [B, C, H, W] shrunk to a share of their sides, by means over boxes, and grown again by repetition."""
    down = [_boxes(size, max(1, int(size * share)), x) for size in x.shape[-2:]]
    small = down[0] @ x @ down[1].T
    up = [
        ((torch.arange(size, dtype=torch.float64) + 0.5) * (few / size)).floor().long().to(x.device)
        for size, few in zip(x.shape[-2:], small.shape[-2:], strict=True)
    ]
    return small[:, :, up[0]][:, :, :, up[1]]


def _boxes(size: int, few: int, like: Tensor) -> Tensor:
    """Return the matrix [few, size] of means over the pixels whose centres are in each of ``few`` equal boxes."""
    wide = size / few
    centre = (torch.arange(few, dtype=torch.float64)[:, None] + 0.5) * wide
    place = torch.arange(size)
    # A pixel whose centre is on an edge falls to a side by rounding, in the order of operations that Pillow has.
    first, last = (centre - wide / 2 + 0.5).long().clamp_min(0), (centre + wide / 2 + 0.5).long()
    away = (place - centre + 0.5) * (1 / wide)
    weights = ((away > -0.5) & (away <= 0.5) & (place >= first) & (place < last)).double()
    return (weights / weights.sum(1, keepdim=True)).to(like)


def jpeg_compression(x: Tensor, quality: int) -> Tensor:
    """Return images [B, C, H, W] of 1 or 3 channels after rounding to 8 bits and JPEG of a quality in 1 to 95."""
    pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    found = np.empty_like(pixels)
    for number, image in enumerate(pixels):
        stream = io.BytesIO()
        Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).save(stream, "JPEG", quality=quality)
        found[number] = np.asarray(Image.open(stream)).reshape(image.shape)
    return torch.from_numpy(found).permute(0, 3, 1, 2).to(x) / 255


@dataclass(frozen=True)
class Contrast(Corruption):
    """Pixels drawn towards the mean of their channel."""

    small = (0.75, 0.5, 0.4, 0.3, 0.15)
    large = (0.4, 0.3, 0.2, 0.1, 0.05)

    def corrupt(self, x: Tensor, level: float, scale: Scale, source: torch.Generator) -> Tensor:
        """Keep a share ``level`` of the contrast."""
        return contrast(x, level)


@dataclass(frozen=True)
class Saturate(Corruption):
    """Paler (severities 1 and 2), then stronger colours."""

    channels = (3,)
    small = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))
    large = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))

    def corrupt(self, x: Tensor, level: tuple[float, float], scale: Scale, source: torch.Generator) -> Tensor:
        """Multiply the saturation and add to it."""
        return saturate(x, *level)


@dataclass(frozen=True)
class ElasticTransform(Corruption):
    """A sheared and bent image; its severities differ in kind, so that the distance does not grow with them."""

    small = ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
    large = ((2.0, 0.7, 0.1), (2.0, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))

    def corrupt(self, x: Tensor, level: tuple[float, float, float], scale: Scale, source: torch.Generator) -> Tensor:
        """Bend, smooth and shear by these shares of the shorter side."""
        side: float = min(x.shape[-2:])
        if scale == "large":
            side *= _WRITTEN / _PUBLISHED
        bend, sigma, tilt = (side * part for part in level)
        return elastic_transform(x, bend, sigma, tilt, source)


@dataclass(frozen=True)
class Pixelate(Corruption):
    """An image of fewer pixels, shown at its old size."""

    small = (0.95, 0.9, 0.85, 0.75, 0.65)
    large = (0.6, 0.5, 0.4, 0.3, 0.25)

    def corrupt(self, x: Tensor, level: float, scale: Scale, source: torch.Generator) -> Tensor:
        """Keep a share ``level`` of the pixels of each side."""
        return pixelate(x, level)


@dataclass(frozen=True)
class JpegCompression(Corruption):
    """The blocks and lost detail of JPEG."""

    channels = (1, 3)
    small = (80, 65, 58, 50, 40)
    large = (25, 18, 15, 10, 7)

    def corrupt(self, x: Tensor, level: int, scale: Scale, source: torch.Generator) -> Tensor:
        """Compress at the quality ``level``."""
        return jpeg_compression(x, level)
