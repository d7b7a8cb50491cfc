"""What the sets share whose radius is a number of changes."""

import dataclasses
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stalwart.core.numbers import require
from stalwart.sets.base import Radius, ThreatSet, parse_radius, radii

Count = Annotated[Any, "a whole number, or a sequence or 1-D tensor with one a sample"]


@dataclasses.dataclass(frozen=True, eq=False)
class Counted(ThreatSet):
    """Base of records whose field ``unit`` counts the places that may change, anywhere in [low, high]."""

    unit: ClassVar[str]

    def __post_init__(self) -> None:
        given = getattr(self, self.unit)
        count = parse_radius(given, self.unit)
        whole = bool((count == count.round()).all()) if isinstance(count, Tensor) else count.is_integer()
        require(whole, f"{self.unit} must be a whole number, got {given}.")
        object.__setattr__(self, self.unit, count.long() if isinstance(count, Tensor) else int(count))

    @property
    def radius(self) -> float | Tensor:
        """The number of places that may change: a float, or a float64 tensor [B]."""
        count = getattr(self, self.unit)
        return count.double() if isinstance(count, Tensor) else float(count)

    def steepest(self, gradient: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch *shape"]:
        """Return g / max_i |g_i| of each sample; :meth:`project` then picks the places."""
        largest = gradient.abs().flatten(1).amax(1).reshape(-1, *[1] * (gradient.dim() - 1))
        return gradient / torch.where(largest > 0, largest, 1.0)

    def bounds(
        self, x: Float[Tensor, " batch *shape"]
    ) -> tuple[Float[Tensor, " batch *shape"], Float[Tensor, " batch *shape"]]:
        """Return the whole box [low, high], or ``x`` twice where nothing may change."""
        x = self._clean(x)
        free = (radii(self.radius, x) > 0).reshape(-1, *[1] * (x.dim() - 1))
        return torch.where(free, self.low, x), torch.where(free, self.high, x)

    def with_eps(self, eps: Radius) -> "ThreatSet":
        """Return the same box with another number of places."""
        return dataclasses.replace(self, **{self.unit: eps})

    def describe(self) -> str:
        """Return one readable line such as ``"L0 pixels=5"``."""
        return self._describe(self.unit)

    def _chosen(self, score: Float[Tensor, " batch places"], x: Tensor) -> Bool[Tensor, " batch places"]:
        """Return where the score is among each sample's largest, as many as may change."""
        order = score.argsort(dim=1, descending=True)
        place = torch.arange(score.shape[1], device=x.device)
        chosen = (place < radii(self.radius, x)[:, None]).expand_as(order)
        return torch.zeros_like(order, dtype=torch.bool).scatter(1, order, chosen)
