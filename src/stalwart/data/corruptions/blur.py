"""Blur: pixels mixed with those around them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stalwart.core.random import uniform
from stalwart.data.corruptions.base import Corruption, Scale
from stalwart.data.corruptions.sampling import along, correlate, smooth, take, zoomed


def disk(radius: float, blur: float) -> Tensor:
    """Return the kernel of a lens out of focus: a disk whose edge is smoothed by a Gaussian; odd sides, sum 1.

    Args:
        radius: of the disk in pixels.
        blur: standard deviation of the Gaussian in pixels, over 3 x 3 pixels, or 5 x 5 for disks of more than 8.
    """
    reach, half = (8, 1) if radius <= 8 else (int(radius), 2)
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64)
    flat = ((axis[:, None] ** 2 + axis**2) <= radius**2).double()
    near = torch.arange(-half, half + 1, dtype=torch.float64)
    line = torch.exp(-(near**2) / (2 * blur**2))
    line /= line.sum()
    return correlate((flat / flat.sum())[None, None], line[:, None] * line, "reflect")[0, 0]


def zoom_blur(x: Tensor, factors: list[float]) -> Tensor:
    """Return the mean of images [B, C, H, W] and their enlargements by each factor."""
    return torch.stack([x, *(zoomed(x, factor) for factor in factors)]).mean(0)


def glass_blur(x: Tensor, sigma: float, reach: int, rounds: int, source: torch.Generator) -> Tensor:
    """Return images [B, C, H, W] smoothed, scattered over a few pixels, and smoothed again.

    From the last pixel to the first, each takes what the pixel at a random offset in [-reach, reach)² then holds; as in the
    published images, nothing goes the other way.
    """
    x = smooth(x, sigma)
    height, width = x.shape[-2:]
    rows, columns = height - 2 * reach, width - 2 * reach
    if rows < 1 or columns < 1:
        return smooth(x, sigma)
    # In the order of the walk, positions of the flat image instead of colours: one short gather a pixel.
    batch = torch.arange(len(x))
    origin = torch.arange(height * width).repeat(len(x), 1)
    draws = uniform((len(x), rounds * rows * columns, 2), source, x).cpu()
    offsets = (draws * 2 * reach).long().clamp_(max=2 * reach - 1) - reach
    moves = (offsets[..., 0] * width + offsets[..., 1]).T.contiguous()
    held, ways, lines = origin.numpy(), moves.numpy(), batch.numpy()
    step = 0
    for _ in range(rounds):
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                here = row * width + column
                held[:, here] = held[lines, here + ways[step]]
                step += 1
    found = origin.view(len(x), height, width).to(x.device)
    return smooth(take(x, found // width, found % width), sigma)


@dataclass(frozen=True)
class GaussianBlur(Corruption):
    """A Gaussian over the pixels."""

    small = (0.4, 0.6, 0.7, 0.8, 1.0)
    large = (1.0, 2.0, 3.0, 4.0, 6.0)

    def corrupt(self, x: Tensor, level: float, scale: Scale, source: torch.Generator) -> Tensor:
        """Smooth by a standard deviation of ``level`` pixels."""
        return smooth(x, level)


@dataclass(frozen=True)
class DefocusBlur(Corruption):
    """A disk over the pixels, as by a lens out of focus."""

    small = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))
    large = ((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5))

    def corrupt(self, x: Tensor, level: tuple[float, float], scale: Scale, source: torch.Generator) -> Tensor:
        """Average over a disk of a radius and a smoothness of its edge."""
        return correlate(x, disk(*level), "reflect")


@dataclass(frozen=True)
class GlassBlur(Corruption):
    """Pixels scattered nearby, as behind frosted glass."""

    small = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))
    large = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))

    def corrupt(self, x: Tensor, level: tuple[float, int, int], scale: Scale, source: torch.Generator) -> Tensor:
        """Scatter with a smoothing, a reach and a number of rounds."""
        return glass_blur(x, *level, source)


@dataclass(frozen=True)
class MotionBlur(Corruption):
    """Pixels smeared along a line within 45 degrees of the horizontal."""

    small = ((6.0, 1.0), (6.0, 1.5), (6.0, 2.0), (8.0, 2.0), (9.0, 2.5))
    large = ((10.0, 3.0), (15.0, 5.0), (15.0, 8.0), (15.0, 12.0), (20.0, 15.0))

    def corrupt(self, x: Tensor, level: tuple[float, float], scale: Scale, source: torch.Generator) -> Tensor:
        """Smear by a radius and a standard deviation."""
        degrees = 90 * uniform((len(x),), source, x) - 45
        return along(x, *level, degrees)


@dataclass(frozen=True)
class ZoomBlur(Corruption):
    """The mean of enlargements, as where the camera moves towards the scene."""

    small = ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))
    large = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))

    def corrupt(self, x: Tensor, level: tuple[float, float], scale: Scale, source: torch.Generator) -> Tensor:
        """Average over factors from 1 to an end in equal steps."""
        # Whether the end itself is among the factors is a matter of rounding, here as in the published images.
        return zoom_blur(x, np.arange(1.0, *level).tolist())
