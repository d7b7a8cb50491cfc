"""GELU and SiLU: z times a distribution function; one dip, convex around 0 and concave in both tails."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from stalwart.bounds.curves.bent import Bent


class _Gated(Bent):
    """z g(z) with g rising from 0 to 1 and g(-z) = 1 - g(z), which makes f'' even."""

    def derivative(self, z: Tensor) -> Tensor:
        """Return g(z) + z g'(z)."""
        gate, first, _ = self.gate(z)
        return gate + z * first

    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return g(z) + z g'(z) and 2 g'(z) + z g''(z)."""
        gate, first, second = self.gate(z)
        return gate + z * first, 2 * first + z * second

    def magnitude(self, z: Tensor) -> Tensor:
        """Return |z| + |f(z)|: in the left tail g is the difference of two numbers near 1."""
        return z.abs() + self.value(z).abs()

    def gate(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return g, g' and g''."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class GELU(_Gated):
    """z Φ(z), or with ``approximate="tanh"`` z (1 + tanh(√(2/π) (z + 0.044715 z³))) / 2.

    Source: Hendrycks and Gimpel, 2016 (arXiv 1606.08415), section 2. The dip and the inflections are zeros of f' and f'',
    computed to 22 digits.
    """

    approximate: Literal["none", "tanh"] = "none"
    reach = 12.0

    @property
    def dip(self) -> float:  # type: ignore[override]
        """The zero of f'."""
        return -0.7517915246935644575 if self.approximate == "none" else -0.7524614220710162585

    @property
    def convex_to(self) -> float:  # type: ignore[override]
        """The positive zero of f''."""
        return math.sqrt(2) if self.approximate == "none" else 1.418504008790828355548

    @property
    def convex_from(self) -> float:  # type: ignore[override]
        """The negative zero of f''."""
        return -self.convex_to

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return F.gelu(z, approximate=self.approximate)

    def gate(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return Φ, φ and -z φ, or the same of the approximation."""
        # Beyond 40 the density is 0; inside, no power of z overflows.
        near = z.clamp(-40, 40)
        if self.approximate == "none":
            density = torch.exp(-near.square() / 2) / math.sqrt(2 * math.pi)
            return torch.erfc(-near / math.sqrt(2)) / 2, density, -near * density
        c = 2 * math.sqrt(2 / math.pi)
        inner = c * (near + 0.044715 * near**3)
        first, second = c * (1 + 3 * 0.044715 * near.square()), c * 6 * 0.044715 * near
        gate, other = torch.sigmoid(inner), torch.sigmoid(-inner)
        density = gate * other
        return gate, density * first, density * (second + first.square() * (other - gate))


class SiLU(_Gated):
    """z / (1 + exp(-z)) (Elfwing et al., 2018, arXiv 1702.03118); the dip and the inflections to 22 digits."""

    dip = -1.278464542761073795109
    convex_from = -2.399357280515467667833
    convex_to = 2.399357280515467667833
    reach = 45.0

    def value(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        return F.silu(z)

    def gate(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sigmoid and its first two derivatives."""
        gate, other = torch.sigmoid(z), torch.sigmoid(-z)
        return gate, gate * other, gate * other * (other - gate)
