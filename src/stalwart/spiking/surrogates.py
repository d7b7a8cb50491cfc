"""Surrogate derivatives: what stands in for the derivative of a spike, which is zero almost everywhere.

A spike is s = H(z) with z = u / θ - 1. A record holds σ'(z), the assumed ds/dz; the chain rule's 1/θ is applied by the
neurons, so a width is in units of the threshold.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from stalwart.core.numbers import Number, require
from stalwart.core.registry import build

_NARROWEST = 1e-4


@dataclasses.dataclass(frozen=True)
class Surrogate(abc.ABC):
    """Base record. ``code`` and :meth:`numbers` are what the compiled loops know it by, -1 where they do not."""

    code: ClassVar[int] = -1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            require(value > 0, f"a surrogate's {field.name} must be positive, got {value}.")

    @abc.abstractmethod
    def slope(self, z: Tensor) -> Tensor:
        """Return σ'(z), shaped like z."""

    def numbers(self) -> tuple[float, float]:
        """Return what the compiled loops need to know."""
        raise NotImplementedError(f"compiled loops do not know the surrogate {type(self).__name__}")


@dataclasses.dataclass(frozen=True)
class Triangle(Surrogate):
    """σ' = max(0, γ - |z|) / γ². Source: Esser et al., PNAS 2016; with γ = 1 that of SNN-RAT (Ding et al., 2022).

    Args:
        gamma: half the width, positive.
    """

    code = 0
    gamma: Number = 1.0

    def slope(self, z: Tensor) -> Tensor:
        """Return σ'(z)."""
        return (self.gamma - z.abs()).clamp_min(0) / self.gamma**2

    def numbers(self) -> tuple[float, float]:
        """Return 1/γ² and γ."""
        return 1 / self.gamma**2, self.gamma


@dataclasses.dataclass(frozen=True)
class Linear(Surrogate):
    """σ' = scale max(0, 1 - |z|). Source: Bellec et al., 2018; Sharmin et al., ECCV 2020, code.

    Args:
        scale: the height, positive.
    """

    code = 0
    scale: Number = 0.3

    def slope(self, z: Tensor) -> Tensor:
        """Return σ'(z)."""
        return self.scale * (1 - z.abs()).clamp_min(0)

    def numbers(self) -> tuple[float, float]:
        """Return the height and 1."""
        return self.scale, 1.0


@dataclasses.dataclass(frozen=True)
class Exponential(Surrogate):
    """σ' = scale exp(-β |z|). Source: Shrestha and Orchard, NeurIPS 2018.

    Args:
        scale: the height, positive.
        beta: how fast it falls, positive.
    """

    code = 1
    scale: Number = 0.3
    beta: Number = 1.0

    def slope(self, z: Tensor) -> Tensor:
        """Return σ'(z)."""
        return self.scale * (-self.beta * z.abs()).exp()

    def numbers(self) -> tuple[float, float]:
        """Return the height and β."""
        return self.scale, self.beta


@dataclasses.dataclass(frozen=True)
class Rectangle(Surrogate):
    """σ' = 1/γ where |z| < γ/2. Source: Wu et al., Frontiers in Neuroscience 2018, equation 24.

    Args:
        gamma: the width, positive.
    """

    code = 2
    gamma: Number = 1.0

    def slope(self, z: Tensor) -> Tensor:
        """Return σ'(z)."""
        return (z.abs() < self.gamma / 2).to(z) / self.gamma

    def numbers(self) -> tuple[float, float]:
        """Return the height and half the width."""
        return 1 / self.gamma, self.gamma / 2


@dataclasses.dataclass(frozen=True)
class Atan(Surrogate):
    """σ' = (α/2) / (1 + (π α z / 2)²). Source: Fang et al., ICCV 2021.

    Args:
        alpha: the sharpness, positive.
    """

    code = 3
    alpha: Number = 2.0

    def slope(self, z: Tensor) -> Tensor:
        """Return σ'(z)."""
        return self.alpha / 2 / (1 + (math.pi * self.alpha / 2 * z).square())

    def numbers(self) -> tuple[float, float]:
        """Return α/2 and πα/2."""
        return self.alpha / 2, math.pi * self.alpha / 2


@dataclasses.dataclass(frozen=True)
class SuperSpike(Surrogate):
    """σ' = 1 / (1 + α |z|)². Source: Zenke and Ganguli, Neural Computation 2018. With α = 100 it hides gradients.

    Args:
        alpha: the sharpness, positive.
    """

    code = 4
    alpha: Number = 10.0

    def slope(self, z: Tensor) -> Tensor:
        """Return σ'(z)."""
        return (1 + self.alpha * z.abs()).square().reciprocal()

    def numbers(self) -> tuple[float, float]:
        """Return 1 and α."""
        return 1.0, self.alpha


@dataclasses.dataclass(frozen=True)
class Gaussian(Surrogate):
    """σ' = exp(-z² / (2 w²)) / (w √(2π)), the density of a Gaussian. Source: Yin, Corradi and Bohté, 2020.

    Args:
        width: its standard deviation w, positive.
    """

    code = 5
    width: Number = 0.5

    def slope(self, z: Tensor) -> Tensor:
        """Return σ'(z)."""
        height, sharpness = self.numbers()
        return height * (-sharpness * z.square()).exp()

    def numbers(self) -> tuple[float, float]:
        """Return the height and 1 / (2 w²)."""
        return 1 / (self.width * math.sqrt(2 * math.pi)), 1 / (2 * self.width**2)


@dataclasses.dataclass(frozen=True)
class StraightThrough(Surrogate):
    """σ' = 1 everywhere. Source: Bengio, Léonard and Courville, 2013 (arXiv 1308.3432)."""

    code = 6

    def slope(self, z: Tensor) -> Tensor:
        """Return ones."""
        return torch.ones_like(z)

    def numbers(self) -> tuple[float, float]:
        """Return 1 and nothing."""
        return 1.0, 0.0


@dataclasses.dataclass(frozen=True)
class PotentialDependent(Surrogate):
    """σ' is the density of a Gaussian of standard deviation s around s / 2, s that of z in each channel over all else.

    Widths follow what membranes do, so that it is never sharper than they are spread: over batch, time and space together, so
    that a gradient depends on the batch. Source: Lun et al., "Towards effective and sparse adversarial attack on spiking neural
    networks via breaking invisible surrogate gradients", CVPR 2025.
    """

    def slope(self, z: Tensor) -> Tensor:
        """Return σ'(z) of membranes [T, B, C, ...], or [T, B, N], whose channel is each neuron."""
        others = [axis for axis in range(z.dim()) if axis != 2]
        spread = z.std(others, correction=0, keepdim=True) if z.dim() > 2 else z.std(correction=0)
        s = spread.clamp_min(_NARROWEST)
        return (-((z - s / 2) / s).square() / 2).exp() / (s * math.sqrt(2 * math.pi))


@dataclasses.dataclass(frozen=True)
class InMembranes(Surrogate):
    """Another surrogate as a function of u - θ, its widths in units of membranes: θ σ'(θ z), so that ds/du = σ'(u - θ).

    Args:
        inner: σ'.
        threshold: θ, positive.
    """

    inner: Surrogate
    threshold: float

    def __post_init__(self) -> None:
        require(self.threshold > 0, f"a threshold must be positive, got {self.threshold}.")

    @property
    def code(self) -> int:  # type: ignore[override]
        """That of the other."""
        return self.inner.code

    def slope(self, z: Tensor) -> Tensor:
        """Return θ σ'(θ z)."""
        return self.threshold * self.inner.slope(self.threshold * z)

    def numbers(self) -> tuple[float, float]:
        """Return the other's numbers for arguments θ times as large."""
        height, number = self.inner.numbers()
        if self.code == 0:  # a (b - |z|)
            return height * self.threshold**2, number / self.threshold
        if self.code == 2:  # a where |z| < b
            return height * self.threshold, number / self.threshold
        power = 2 if self.code == 5 else 1
        return height * self.threshold, number * self.threshold**power


SURROGATES: dict[str, str] = {
    "triangle": "stalwart.spiking.surrogates:Triangle",
    "linear": "stalwart.spiking.surrogates:Linear",
    "exponential": "stalwart.spiking.surrogates:Exponential",
    "rectangle": "stalwart.spiking.surrogates:Rectangle",
    "atan": "stalwart.spiking.surrogates:Atan",
    "superspike": "stalwart.spiking.surrogates:SuperSpike",
    "gaussian": "stalwart.spiking.surrogates:Gaussian",
    "potential-dependent": "stalwart.spiking.surrogates:PotentialDependent",
    "straight-through": "stalwart.spiking.surrogates:StraightThrough",
}


def find_surrogate(wanted: "Surrogate | str | Mapping[str, Any]") -> Surrogate:
    """Return a surrogate from itself, its name, or its name with options: ``{"name": "triangle", "gamma": 0.5}``.

    Raises:
        UsageError: an unknown name or option, or a width that is not positive.
    """
    if isinstance(wanted, Surrogate):
        return wanted
    options = {"name": wanted} if isinstance(wanted, str) else dict(wanted)
    name = options.pop("name", None)
    require(isinstance(name, str), f"a surrogate needs a name, got {wanted!r}.")
    found: Surrogate = build("surrogate", SURROGATES, str(name), options)
    return found
