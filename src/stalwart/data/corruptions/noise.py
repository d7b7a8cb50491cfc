"""Noise: on every pixel and channel by itself."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.core.random import normal, uniform
from stalwart.data.corruptions.base import Corruption, Scale


def gaussian_noise(x: Tensor, std: float, source: torch.Generator) -> Tensor:
    """Return x + std·R with R ~ N(0, 1); images [B, C, H, W]."""
    return x + std * normal(x.shape, source, x)


def shot_noise(x: Tensor, photons: float, source: torch.Generator) -> Tensor:
    """Return P / photons with P ~ Poisson(photons·x): mean x, variance x / photons."""
    return torch.poisson(photons * x, generator=source) / photons


def impulse_noise(x: Tensor, amount: float, source: torch.Generator) -> Tensor:
    """Return x where a share ``amount`` of all values is replaced, by 0 or 1 with equal chance."""
    draw = uniform(x.shape, source, x)
    return torch.where(draw < amount / 2, 0.0, torch.where(draw < amount, 1.0, x))


def speckle_noise(x: Tensor, std: float, source: torch.Generator) -> Tensor:
    """Return x + std·x·R with R ~ N(0, 1)."""
    return x + std * x * normal(x.shape, source, x)


@dataclass(frozen=True)
class GaussianNoise(Corruption):
    """Gaussian noise of one standard deviation, as in low light."""

    small = (0.04, 0.06, 0.08, 0.09, 0.10)
    large = (0.08, 0.12, 0.18, 0.26, 0.38)

    def corrupt(self, x: Tensor, level: float, scale: Scale, source: torch.Generator) -> Tensor:
        """Add noise of standard deviation ``level``."""
        return gaussian_noise(x, level, source)


@dataclass(frozen=True)
class ShotNoise(Corruption):
    """Poisson noise of counted photons."""

    small = (500.0, 250.0, 100.0, 75.0, 50.0)
    large = (60.0, 25.0, 12.0, 5.0, 3.0)

    def corrupt(self, x: Tensor, level: float, scale: Scale, source: torch.Generator) -> Tensor:
        """Count ``level`` photons where a pixel is white."""
        return shot_noise(x, level, source)


@dataclass(frozen=True)
class ImpulseNoise(Corruption):
    """Salt and pepper: some values become 0 or 1."""

    small = (0.01, 0.02, 0.03, 0.05, 0.07)
    large = (0.03, 0.06, 0.09, 0.17, 0.27)

    def corrupt(self, x: Tensor, level: float, scale: Scale, source: torch.Generator) -> Tensor:
        """Replace a share ``level`` of all values."""
        return impulse_noise(x, level, source)


@dataclass(frozen=True)
class SpeckleNoise(Corruption):
    """Gaussian noise in proportion to the pixel."""

    small = (0.06, 0.1, 0.12, 0.16, 0.2)
    large = (0.15, 0.2, 0.35, 0.45, 0.6)

    def corrupt(self, x: Tensor, level: float, scale: Scale, source: torch.Generator) -> Tensor:
        """Add noise of standard deviation ``level`` times the pixel."""
        return speckle_noise(x, level, source)
