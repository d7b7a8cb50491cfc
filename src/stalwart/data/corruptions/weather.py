"""Weather: fog, snow and bright days. Frost, which needs photographs of ice, is not here."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.core.random import normal, uniform
from stalwart.data.corruptions.base import Corruption, Scale
from stalwart.data.corruptions.sampling import along, zoomed

_GREY = (0.299, 0.587, 0.114)


def plasma(count: int, size: int, decay: float, source: torch.Generator, like: Tensor) -> Tensor:
    """Return height maps [count, size, size] over [0, 1] by the diamond-square algorithm on a torus.

    Each midpoint is the mean of the four points around it plus w·U(-w, w), where w starts at 100 and falls by ``decay`` at
    each halving of the mesh.

    Args:
        count: how many maps.
        size: pixels of a side, a power of two.
        decay: smaller values give rougher maps.
        source: the source of randomness.
        like: its dtype and device are those of the maps.

    Source: Fournier, Fussell and Carpenter, "Computer rendering of stochastic models", 1982.
    """
    maps = torch.zeros(count, size, size, dtype=like.dtype, device=like.device)
    step, wobble = size, 100.0

    def moved(total: Tensor) -> Tensor:
        return total / 4 + wobble * wobble * (2 * uniform(total.shape, source, total) - 1)

    while step >= 2:
        half = step // 2
        corners = maps[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        maps[:, half::step, half::step] = moved(pairs + pairs.roll(-1, 2))
        middles = maps[:, half::step, half::step]
        maps[:, ::step, half::step] = moved(corners + corners.roll(-1, 2) + middles + middles.roll(1, 1))
        maps[:, half::step, ::step] = moved(corners + corners.roll(-1, 1) + middles + middles.roll(1, 2))
        step, wobble = half, wobble / decay
    maps -= maps.amin((1, 2), keepdim=True)
    return maps / maps.amax((1, 2), keepdim=True)


def fog(x: Tensor, amount: float, decay: float, source: torch.Generator) -> Tensor:
    """Return (x + amount·plasma)·m / (m + amount), m the brightest value of each image [B, C, H, W]."""
    height, width = x.shape[-2:]
    size = max(2, 1 << (max(height, width) - 1).bit_length())
    cloud = plasma(len(x), size, decay, source, x)[:, None, :height, :width]
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + amount * cloud) * brightest / (brightest + amount)


def snow(x: Tensor, level: tuple[float, ...], source: torch.Generator) -> Tensor:
    """Return images [B, C, H, W] whitened, with a layer of falling flakes and the same layer turned by 180 degrees.

    Args:
        x: images of 1 or 3 channels.
        level: mean and deviation of the flakes, their size, the threshold from which there is one, radius and deviation
            of their fall in pixels, and the share of the image that is not whitened.
        source: the source of randomness.
    """
    mean, std, factor, threshold, radius, sigma, share = level
    flakes = zoomed(mean + std * normal((len(x), 1, *x.shape[2:]), source, x), factor)
    flakes = torch.where(flakes < threshold, 0.0, flakes.clamp(0, 1))
    degrees = 90 * uniform((len(x),), source, x) - 135
    flakes = along(flakes, radius, sigma, degrees)
    grey = x if x.shape[1] == 1 else (x * x.new_tensor(_GREY)[:, None, None]).sum(1, keepdim=True)
    white = torch.maximum(x, 1.5 * grey + 0.5)
    return share * x + (1 - share) * white + flakes + flakes.flip((-2, -1))


def brightness(x: Tensor, amount: float) -> Tensor:
    """Return images [B, C, H, W] whose value V = max over the channels is min(V + amount, 1), of equal hue and saturation."""
    value = x.amax(1, keepdim=True)
    target = (value + amount).clamp(0, 1)
    return torch.where(value > 0, x * target / value.clamp_min(torch.finfo(x.dtype).tiny), target)


@dataclass(frozen=True)
class Fog(Corruption):
    """A random cloud before the image."""

    small = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))
    large = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))

    def corrupt(self, x: Tensor, level: tuple[float, float], scale: Scale, source: torch.Generator) -> Tensor:
        """Add fog of an amount and a smoothness."""
        return fog(x, *level, source)


@dataclass(frozen=True)
class Snow(Corruption):
    """Falling flakes, and a whitened image."""

    channels = (1, 3)
    small = (
        (0.1, 0.2, 1.0, 0.6, 8.0, 3.0, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10.0, 4.0, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10.0, 4.0, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12.0, 6.0, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14.0, 12.0, 0.8),
    )
    large = (
        (0.1, 0.3, 3.0, 0.5, 10.0, 4.0, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12.0, 4.0, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12.0, 8.0, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12.0, 8.0, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12.0, 12.0, 0.55),
    )

    def corrupt(self, x: Tensor, level: tuple[float, ...], scale: Scale, source: torch.Generator) -> Tensor:
        """Let it snow; see :func:`snow` for the level."""
        return snow(x, level, source)


@dataclass(frozen=True)
class Brightness(Corruption):
    """A brighter image of the same colours."""

    channels = (1, 3)
    small = (0.05, 0.1, 0.15, 0.2, 0.3)
    large = (0.1, 0.2, 0.3, 0.4, 0.5)

    def corrupt(self, x: Tensor, level: float, scale: Scale, source: torch.Generator) -> Tensor:
        """Raise the value of each pixel by ``level``."""
        return brightness(x, level)
