"""Rasters of events: a few bins may flip."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from stalwart.core import random
from stalwart.core.errors import InputError
from stalwart.sets.base import radii, round_up
from stalwart.sets.counted import Count, Counted


@dataclasses.dataclass(frozen=True, eq=False)
class Events(Counted):
    """The set {z in {0, 1}^d : z differs from the binary raster x in at most ``flips`` bins}.

    Inputs are rasters [B, ...] of zeros and ones, such as event frames [B, T, 2, H, W]; a flip adds or removes an event.

    Args:
        flips: the number of bins, at least 0: an integer, or one a sample [B].

    Raises:
        UsageError: a negative or fractional number of flips.

    Example:
        >>> Events(3).describe()
        'Events flips=3'
    """

    flips: Count
    low = 0.0
    high = 1.0
    name = "events"
    unit = "flips"

    @property
    def scale(self) -> float | Tensor:
        """The unit of step sizes: so far that any bin with a gradient may flip, and :meth:`project` picks the best ones."""
        return 2.0**20

    def project(
        self, x: Float[Tensor, " batch *shape"], z: Float[Tensor, " batch *shape"]
    ) -> Float[Tensor, " batch *shape"]:
        """Return ``x`` with the bins flipped that ``z`` moved farthest towards their other value, beyond the middle."""
        x = self._clean(x)
        moved = ((z - x) * (1 - 2 * x)).flatten(1)
        flipped = self._chosen(moved, x) & (moved > 0.5)
        return torch.where(flipped.reshape(x.shape), 1 - x, x)

    def sample(self, x: Float[Tensor, " batch *shape"], generator: torch.Generator) -> Float[Tensor, " batch *shape"]:
        """Return ``x`` with as many bins flipped as may flip, drawn without replacement."""
        lots = random.uniform(x.shape, generator, x)
        return self.project(x, x + (1 - 2 * self._clean(x)) * (1 + lots))

    def support(self, x: Float[Tensor, " batch *shape"], c: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch"]:
        """Return <c, x> plus the ``flips`` largest positive values of c (1 - 2 x), rounded up."""
        centre, slope = self._clean(x.double()).flatten(1), c.double().flatten(1)
        gains = (slope * (1 - 2 * centre)).clamp_min(0)
        kept = gains.topk(min(int(self.size), gains.shape[1]), dim=1).values
        place = torch.arange(kept.shape[1], device=kept.device)
        taken = torch.where(place < radii(self.radius, x)[:, None], kept, 0.0).sum(1)
        return round_up((slope * centre).sum(1) + taken, x.dtype)

    def _near(self, x: Tensor, z: Tensor, tolerance: float, unit: float) -> Tensor:
        binary = (torch.minimum(z.abs(), (z - 1).abs()) <= tolerance).flatten(1).all(1)
        return binary & (((z - x).abs() > 0.5).flatten(1).sum(1) <= radii(self.radius, x))

    def _clean(self, x: Tensor) -> Tensor:
        x = super()._clean(x)
        # Any binary raster equals its own square; one pass over the data.
        if not torch.equal(x, x * x):
            raise InputError(
                "the threat set 'events' flips bins of binary rasters, but the inputs hold values other than 0 and 1; "
                "make binary frames, or use Linf or L0 on counts."
            )
        return x
