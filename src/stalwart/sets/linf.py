"""The ℓ∞ ball: every coordinate may move by at most eps."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from stalwart.core import random
from stalwart.sets.base import NormBall, expand, round_up


@dataclasses.dataclass(frozen=True, eq=False)
class Linf(NormBall):
    """The set {z : |z_i - x_i| <= eps for all i, low <= z <= high}.

    Args:
        eps: radius in data units, at least 0: a float, a string such as ``"8/255"``, or one value a sample [B].
        low: smallest valid input value.
        high: largest valid input value, above ``low``.

    Raises:
        UsageError: a negative or non-finite radius, or ``low >= high``.

    Example:
        >>> Linf("8/255").describe()
        'Linf eps=0.03137 (8/255)'
    """

    name = "linf"

    def project(
        self, x: Float[Tensor, " batch *shape"], z: Float[Tensor, " batch *shape"]
    ) -> Float[Tensor, " batch *shape"]:
        """Return the Euclidean projection of ``z`` on the set, which is a clip to :meth:`bounds`."""
        lower, upper = self.bounds(x)
        return z.clamp(lower, upper)

    def sample(self, x: Float[Tensor, " batch *shape"], generator: torch.Generator) -> Float[Tensor, " batch *shape"]:
        """Return a uniform point of the ball clipped to the box: the random start of PGD (Madry et al., 2018)."""
        signed = 2 * random.uniform(x.shape, generator, x) - 1
        return self.project(x, x + signed * expand(self.radius, x))

    def steepest(self, gradient: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch *shape"]:
        """Return sign(g)."""
        return gradient.sign()

    def support(self, x: Float[Tensor, " batch *shape"], c: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch"]:
        """Return Σ_i max(c_i, 0)·upper_i + min(c_i, 0)·lower_i with the corners of :meth:`bounds`, rounded up."""
        lower, upper = self.bounds(x.double())
        wide = c.double()
        best = wide.clamp_min(0) * upper + wide.clamp_max(0) * lower
        return round_up(best.flatten(1).sum(1), x.dtype)

    def distance(self, x: Float[Tensor, " batch *shape"], z: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch"]:
        """Return max_i |z_i - x_i| of each sample, in float64."""
        return (z - x).abs().flatten(1).amax(1).double()

    def _near(self, x: Tensor, z: Tensor, tolerance: float, unit: float) -> Tensor:
        eps = expand(self.radius, x)
        return ((z - x).abs() <= eps + tolerance * unit).flatten(1).all(1)
