"""Sigmoid, tanh and erf: convex below 0, concave above."""

import math

import torch
from torch import Tensor

from stalwart.bounds.curves.bent import Bent, Part


class _SShaped(Bent):
    """A rising function with f' even and falling on either side of 0."""

    convex_to = 0.0

    def stationary(self, slope: Tensor, low: Tensor, high: Tensor, part: Part) -> Tensor:
        """Return the distance from 0 at which f' is ``slope``, with the sign of the part."""
        distance = torch.where(slope > 0, self.distance(slope.clamp_min(torch.finfo(slope.dtype).tiny)), math.inf)
        return distance if part == "right" else -distance

    def distance(self, slope: Tensor) -> Tensor:
        """Return the z >= 0 with f'(z) = slope > 0; 0 where the slope is above f'(0)."""
        raise NotImplementedError


class Sigmoid(_SShaped):
    """1 / (1 + exp(-z))."""

    codomain = (0.0, 1.0)
    reach = 90.0

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return torch.sigmoid(z)

    def derivative(self, z: Tensor) -> Tensor:
        """Return e / (1 + e)² with e = exp(-|z|), which does not cancel."""
        decay = torch.exp(-z.abs())
        return decay / (1 + decay).square()

    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return f'(z) and f'(z) (1 - 2 f(z))."""
        first = self.derivative(z)
        return first, -first * torch.tanh(z / 2)

    def distance(self, slope: Tensor) -> Tensor:
        """Solve 1 / (4 cosh²(z / 2)) = slope."""
        return 2 * torch.acosh((0.5 * slope.rsqrt()).clamp_min(1))


class Tanh(_SShaped):
    """tanh(z)."""

    codomain = (-1.0, 1.0)
    reach = 45.0

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return torch.tanh(z)

    def derivative(self, z: Tensor) -> Tensor:
        """Return 4 e / (1 + e)² with e = exp(-2 |z|), which does not cancel."""
        decay = torch.exp(-2 * z.abs())
        return 4 * decay / (1 + decay).square()

    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return f'(z) and -2 f(z) f'(z)."""
        first = self.derivative(z)
        return first, -2 * torch.tanh(z) * first

    def distance(self, slope: Tensor) -> Tensor:
        """Solve 1 / cosh²(z) = slope."""
        return torch.acosh(slope.rsqrt().clamp_min(1))


class Erf(_SShaped):
    """2 / √π times the integral of exp(-t²) from 0 to z."""

    codomain = (-1.0, 1.0)
    reach = 9.0

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return torch.erf(z)

    def derivative(self, z: Tensor) -> Tensor:
        """Return 2 / √π exp(-z²)."""
        return 2 / math.sqrt(math.pi) * torch.exp(-z.square())

    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return f'(z) and -2 z f'(z)."""
        first = self.derivative(z)
        return first, -2 * z * first

    def distance(self, slope: Tensor) -> Tensor:
        """Solve 2 / √π exp(-z²) = slope."""
        return (-torch.log(slope * (math.sqrt(math.pi) / 2))).clamp_min(0).sqrt()
