"""The ℓ0 ball: a few pixels may take any valid value."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from stalwart.core import random
from stalwart.core.numbers import Number
from stalwart.sets.base import radii, round_up
from stalwart.sets.counted import Count, Counted


@dataclasses.dataclass(frozen=True, eq=False)
class L0(Counted):
    """The set {z : z differs from x in at most ``pixels`` locations, low <= z <= high}.

    A location is a spatial position with all its channels where inputs are images [B, C, H, W], else one coordinate.

    Args:
        pixels: the number of locations, at least 0: an integer, or one a sample [B].
        low: smallest valid input value.
        high: largest valid input value, above ``low``.

    Raises:
        UsageError: a negative or fractional number of pixels, or ``low >= high``.

    Example:
        >>> L0(5).describe()
        'L0 pixels=5'
    """

    pixels: Count
    low: Number = 0.0
    high: Number = 1.0
    name = "l0"
    unit = "pixels"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_box()

    @property
    def scale(self) -> float | Tensor:
        """The unit of step sizes, 1: the radius counts locations and says nothing about how far one may move."""
        return 1.0

    def project(
        self, x: Float[Tensor, " batch *shape"], z: Float[Tensor, " batch *shape"]
    ) -> Float[Tensor, " batch *shape"]:
        """Return ``z`` clipped to the box where it then differs most (in ℓ2) from ``x``, and ``x`` elsewhere."""
        x = self._clean(x)
        z = z.clamp(self.low, self.high)
        return torch.where(self._largest(_by_location((z - x).square()), x), z, x)

    def sample(self, x: Float[Tensor, " batch *shape"], generator: torch.Generator) -> Float[Tensor, " batch *shape"]:
        """Return ``x`` with uniform values in [low, high] at locations drawn without replacement."""
        x = self._clean(x)
        lots = random.uniform(_by_location(x).shape, generator, x)
        values = self.low + (self.high - self.low) * random.uniform(x.shape, generator, x)
        return torch.where(self._largest(lots, x), values, x).clamp(self.low, self.high)

    def support(self, x: Float[Tensor, " batch *shape"], c: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch"]:
        """Return <c, x> plus the ``pixels`` largest gains of one location each, rounded up.

        The gain of a location is Σ over its channels of max(c·(high - x), c·(low - x)).
        """
        centre, slope = self._clean(x.double()), c.double()
        gains = _by_location(slope.clamp_min(0) * (self.high - centre) + slope.clamp_max(0) * (self.low - centre))
        kept = gains.sort(dim=1, descending=True).values
        place = torch.arange(gains.shape[1], device=gains.device)
        taken = torch.where(place < radii(self.radius, x)[:, None], kept, 0.0).sum(1)
        return round_up((slope * centre).flatten(1).sum(1) + taken, x.dtype)

    def distance(self, x: Float[Tensor, " batch *shape"], z: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch"]:
        """Return the number of locations in which z differs from x, in float64."""
        return (_by_location((z != x).double()) > 0).sum(1).double()

    def _near(self, x: Tensor, z: Tensor, tolerance: float, unit: float) -> Tensor:
        moved = _by_location(((z - x).abs() > tolerance * unit).double()) > 0
        return moved.sum(1) <= radii(self.radius, x)

    def _largest(self, score: Tensor, x: Tensor) -> Tensor:
        """Return a mask that broadcasts against ``x``: the ``pixels`` locations of each sample with the largest score."""
        mask = self._chosen(score, x)
        return mask.reshape(len(x), 1, *x.shape[2:]) if x.dim() == 4 else mask.reshape(x.shape)


def _by_location(values: Tensor) -> Tensor:
    """Return the sum of ``values`` over the coordinates of each location: [B, locations]."""
    return (values.sum(1) if values.dim() == 4 else values).flatten(1)
