"""What every threat model is: a set of admissible inputs around each clean input, cut to the valid input range."""

import abc
import dataclasses
import math
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stalwart.core.errors import InputError, UsageError
from stalwart.core.numbers import Number, parse_number, require

Radius = Annotated[Any, "a number, a string such as '8/255', or a sequence or 1-D tensor with one number a sample"]
"""What a caller may write for a radius; :func:`parse_radius` turns it into a ``float`` or a float64 tensor [B]."""


def parse_radius(value: Any, what: str = "eps") -> float | Tensor:
    """Return a radius as a float, or as a float64 tensor [B] where there is one value a sample.

    Raises:
        UsageError: not a number, negative, NaN, infinite, or a tensor of more than one dimension.
    """
    axes = np.ndim(value)
    if axes == 0:
        number = parse_number(value.item() if isinstance(value, Tensor) else value)
        require(number >= 0, f"{what} must be at least 0, got {number:g}.")
        return number
    require(axes == 1, f"{what} must be one number or one a sample (shape [B]), got {axes} dimensions.")
    if isinstance(value, Tensor):
        # A copy: a frozen record must not change when its caller's tensor does.
        radii = value.detach().to(torch.float64, copy=True)
    else:
        radii = torch.tensor([parse_number(one) for one in value], dtype=torch.float64)
    bad = ~(torch.isfinite(radii) & (radii >= 0))
    if bad.any():
        first = int(bad.nonzero()[0])
        raise UsageError(f"{what} must be finite and at least 0, got {float(radii[first]):g} for sample {first}.")
    return radii


def expand(value: float | Tensor, x: Float[Tensor, " batch *shape"]) -> float | Tensor:
    """Return ``value`` so that it broadcasts against ``x``: a float as it is, a tensor [B] as [B, 1, ..., 1] like ``x``.

    Raises:
        InputError: a tensor whose length is not the batch size of ``x``.
    """
    if not isinstance(value, Tensor):
        return value
    if len(value) != len(x):
        raise InputError(
            f"the threat set holds {len(value)} radii but there are {len(x)} inputs; "
            "give one number, one radius an input, or take the matching part with select(index)."
        )
    return value.to(x).reshape(-1, *[1] * (x.dim() - 1))


def radii(value: float | Tensor, x: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch"]:
    """Return ``value`` as one float64 number a sample [B] on the device of ``x``; errors as in :func:`expand`."""
    found = expand(value, x)
    if isinstance(found, Tensor):
        return found.double().flatten()
    return torch.full((len(x),), found, dtype=torch.float64, device=x.device)


def round_up(value: Float[Tensor, " batch"], dtype: torch.dtype) -> Float[Tensor, " batch"]:
    """Convert to ``dtype`` without ever going below ``value``; gradients pass as through a plain conversion."""
    near = value.to(dtype)
    above = torch.nextafter(near, torch.full_like(near, math.inf))
    return near + torch.where(near.to(value.dtype) < value, above - near, torch.zeros_like(near)).detach()


class ThreatSet(abc.ABC):
    """The points an adversary may move each clean input to: a ball around it, intersected with the box [low, high].

    One such object serves attacks (:meth:`project`, :meth:`sample`, :meth:`steepest`) and bounds (:meth:`support`,
    :meth:`bounds`). Subclasses are frozen records, ``Linf(eps, low=0.0, high=1.0)`` and the like, and every method is
    pure. Inputs are [B, ...] in float32 or float64 on any device. A clean input that leaves the box by rounding is
    first clipped to it, so that the set is never empty.
    """

    name: ClassVar[str]
    low: float
    high: float

    @property
    @abc.abstractmethod
    def radius(self) -> float | Tensor:
        """The size of the set in its own norm: a float, or a float64 tensor [B]."""

    @property
    @abc.abstractmethod
    def scale(self) -> float | Tensor:
        """The natural unit of an attack's step size, in data units: a float, or a float64 tensor [B]."""

    @property
    def size(self) -> float:
        """The largest radius of any sample."""
        if not isinstance(self.radius, Tensor):
            return self.radius
        return float(self.radius.max()) if len(self.radius) else 0.0

    @abc.abstractmethod
    def project(
        self, x: Float[Tensor, " batch *shape"], z: Float[Tensor, " batch *shape"]
    ) -> Float[Tensor, " batch *shape"]:
        """Return a point of the set around ``x`` near ``z``; points already inside stay as they are.

        Args:
            x: clean inputs [B, ...] in [low, high].
            z: any points [B, ...]; infinities are allowed, NaN stays NaN.

        Raises:
            InputError: the number of radii is not the batch size, or the inputs are not float32 or float64.
        """

    @abc.abstractmethod
    def sample(self, x: Float[Tensor, " batch *shape"], generator: torch.Generator) -> Float[Tensor, " batch *shape"]:
        """Return one random point of the set around each ``x``: the random start of an attack.

        Args:
            x: clean inputs [B, ...] in [low, high].
            generator: the source of randomness, on the device of ``x``.
        """

    @abc.abstractmethod
    def steepest(self, gradient: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch *shape"]:
        """Return the direction of unit size that a linear function with this gradient grows fastest in; 0 where it is 0."""

    def uphill(
        self, z: Float[Tensor, " batch *shape"], gradient: Float[Tensor, " batch *shape"]
    ) -> Float[Tensor, " batch *shape"]:
        """Return :meth:`steepest` for a step from ``z`` that will be projected; sets where a step may be lost differ."""
        return self.steepest(gradient)

    @abc.abstractmethod
    def support(self, x: Float[Tensor, " batch *shape"], c: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch"]:
        """Return the support function max over z in the set around ``x`` of <c, z>, rounded up; differentiable in both.

        Args:
            x: clean inputs [B, ...] in [low, high].
            c: coefficients [B, ...] of one linear function a sample.
        """

    @abc.abstractmethod
    def bounds(
        self, x: Float[Tensor, " batch *shape"]
    ) -> tuple[Float[Tensor, " batch *shape"], Float[Tensor, " batch *shape"]]:
        """Return the lower and upper corner, both [B, ...], of the smallest box that holds the set around ``x``."""

    def contains(
        self, x: Float[Tensor, " batch *shape"], z: Float[Tensor, " batch *shape"], tolerance: float = 1e-6
    ) -> Bool[Tensor, " batch"]:
        """Return whether each ``z`` is in the set around its ``x``; NaN and infinity never are.

        Args:
            x: clean inputs [B, ...] in [low, high].
            z: the points to judge [B, ...].
            tolerance: slack for rounding in units of max(1, |low|, |high|), or of the radius where that is larger.
        """
        x, wide = self._clean(x).double(), z.double()
        unit = max(1.0, abs(self.low), abs(self.high))
        slack = tolerance * unit
        inside = ((wide >= self.low - slack) & (wide <= self.high + slack)).flatten(1).all(1)
        return inside & self._near(x, wide, tolerance, unit)

    def distance(self, x: Float[Tensor, " batch *shape"], z: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch"]:
        """Return the size of the change from x to z in the norm of this set, in float64: the least radius that holds z.

        Raises:
            UsageError: the set is no ball, so that it has no norm.
        """
        raise UsageError(f"{self.describe()} is no ball and knows no distances; take Linf, L2, L1 or L0.")

    def select(self, index: Tensor | slice) -> "ThreatSet":
        """Return the set for the samples ``index`` (a slice, or a tensor of booleans or positions) of a batch."""
        radius = self.radius
        if not isinstance(radius, Tensor):
            return self
        return self.with_eps(radius[index.to(radius.device) if isinstance(index, Tensor) else index])

    @abc.abstractmethod
    def with_eps(self, eps: Radius) -> "ThreatSet":
        """Return the same kind of set in the same box with another radius."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Return one readable line such as ``"Linf eps=0.03137 (8/255)"``."""

    @abc.abstractmethod
    def _near(self, x: Tensor, z: Tensor, tolerance: float, unit: float) -> Tensor:
        """Return whether each float64 ``z`` is in the ball around its ``x``, whatever the box: [B] booleans."""

    def _clean(self, x: Tensor) -> Tensor:
        if x.dtype not in (torch.float32, torch.float64):
            # Half precision cannot hold a point of a small ball: its spacing at 0.5 is 0.0005 to 0.004.
            raise InputError(f"threat sets work on float32 or float64 inputs, got {x.dtype}; use x.float().")
        return x.clamp(self.low, self.high)

    def _check_box(self) -> None:
        for side in ("low", "high"):
            object.__setattr__(self, side, parse_number(getattr(self, side)))
        require(self.low < self.high, f"low must be below high, got low={self.low:g}, high={self.high:g}.")

    def _describe(self, option: str) -> str:
        box = "" if (self.low, self.high) == (0.0, 1.0) else f" in [{self.low:g}, {self.high:g}]"
        return f"{type(self).__name__} {option}={_readable(self.radius)}{box}"

    def _key(self) -> tuple[Any, ...]:
        radius = self.radius
        return type(self), tuple(radius.tolist()) if isinstance(radius, Tensor) else radius, self.low, self.high

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ThreatSet) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@dataclasses.dataclass(frozen=True, eq=False)
class NormBall(ThreatSet):
    """What ℓ∞ and ℓ2 share: a radius ``eps`` in data units and a smallest box of half-width ``eps``."""

    eps: Radius
    low: Number = 0.0
    high: Number = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", parse_radius(self.eps))
        self._check_box()

    @property
    def radius(self) -> float | Tensor:
        """The radius ``eps`` in data units: a float, or a float64 tensor [B]."""
        return self.eps

    @property
    def scale(self) -> float | Tensor:
        """The unit of step sizes, which is ``eps`` itself."""
        return self.eps

    def bounds(
        self, x: Float[Tensor, " batch *shape"]
    ) -> tuple[Float[Tensor, " batch *shape"], Float[Tensor, " batch *shape"]]:
        """Return max(x - eps, low) and min(x + eps, high), rounded to nearest in the dtype of ``x``."""
        x = self._clean(x)
        eps = expand(self.radius, x)
        return (x - eps).clamp_min(self.low), (x + eps).clamp_max(self.high)

    def with_eps(self, eps: Radius) -> "ThreatSet":
        """Return the same kind of ball in the same box with radius ``eps``."""
        return dataclasses.replace(self, eps=eps)

    def describe(self) -> str:
        """Return one readable line such as ``"Linf eps=0.03137 (8/255)"``."""
        return self._describe("eps")


def _readable(radius: float | Tensor) -> str:
    if isinstance(radius, Tensor):
        if not len(radius):
            return "none (0 samples)"
        return f"{float(radius.min()):.4g}..{float(radius.max()):.4g} (one each for {len(radius)} samples)"
    short = f"{radius:.4g}"
    steps = round(radius * 255)
    # Eight-bit images make eps = k/255 the usual unit; a number that is already short needs no second form.
    fraction = f" ({steps}/255)" if float(short) != radius and abs(radius * 255 - steps) < 1e-9 else ""
    return short + fraction
