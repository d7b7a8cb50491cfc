"""A box: every element of the input has a range of its own."""

import dataclasses
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from stalwart.core import random
from stalwart.core.errors import InputError, UsageError
from stalwart.core.numbers import Number, require
from stalwart.sets.base import Radius, ThreatSet, round_up

Ends = Annotated[Any, "a tensor [B, ...], or what torch.as_tensor makes one of"]

# Other tools' rounding, as for images in core.checks; in units of max(1, |low|, |high|).
_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True, eq=False)
class Box(ThreatSet):
    """The set {z : lower <= z <= upper, low <= z <= high}: an interval for every element of every input.

    The ends stand by themselves: they need not be symmetric around the clean input ``x``, which must lie between them.
    They are kept in float64, cut to [low, high], and used in the dtype of ``x``. Selecting samples selects their boxes.

    Args:
        lower: lower ends [B, ...] in data units, shaped like the inputs; -infinity stands for ``low``.
        upper: upper ends [B, ...], at least ``lower``; infinity stands for ``high``.
        low: smallest valid input value.
        high: largest valid input value, above ``low``.

    Raises:
        UsageError: not numbers, NaN, unequal shapes, fewer than 2 dimensions, ``lower > upper``, a box outside
            [low, high], or ``low >= high``.

    Example:
        >>> Box([[0.2, 0.5]], [[0.3, 0.9]]).describe()
        'Box half-width=0.2..0.2 (one each for 1 samples)'
    """

    lower: Ends
    upper: Ends
    low: Number = 0.0
    high: Number = 1.0
    name = "box"

    def __post_init__(self) -> None:
        self._check_box()
        lower, upper = _numbers(self.lower, "lower"), _numbers(self.upper, "upper")
        require(
            lower.shape == upper.shape and lower.dim() >= 2,
            f"lower and upper must both have the shape [B, ...] of the inputs, got {[*lower.shape]}, {[*upper.shape]}.",
        )
        _refuse(lower > upper, "lower is above upper")
        slack = _TOLERANCE * max(1.0, abs(self.low), abs(self.high))
        outside = (lower > self.high + slack) | (upper < self.low - slack)
        _refuse(outside, f"the box does not meet [{self.low:g}, {self.high:g}]")
        object.__setattr__(self, "lower", lower.clamp(self.low, self.high))
        object.__setattr__(self, "upper", upper.clamp(self.low, self.high))

    @property
    def radius(self) -> float | Tensor:
        """Half the width of the widest element of each sample, in data units: a float64 tensor [B]."""
        return _widest(self._reach())

    @property
    def scale(self) -> float | Tensor:
        """The unit of step sizes: half the width of each sample's widest element."""
        return self.radius

    def project(
        self, x: Float[Tensor, " batch *shape"], z: Float[Tensor, " batch *shape"]
    ) -> Float[Tensor, " batch *shape"]:
        """Return the Euclidean projection of ``z`` on the set, which is a clip to :meth:`bounds`."""
        lower, upper = self.bounds(x)
        return z.clamp(lower, upper)

    def sample(self, x: Float[Tensor, " batch *shape"], generator: torch.Generator) -> Float[Tensor, " batch *shape"]:
        """Return a uniform point of the box."""
        lower, upper = self.bounds(x)
        return self.project(x, lower + (upper - lower) * random.uniform(x.shape, generator, x))

    def steepest(self, gradient: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch *shape"]:
        """Return sign(g)·r/R with the half-widths r of a sample's elements and the largest of them, R.

        A step of :attr:`scale` so moves each element by its own half-width. Where x is not the centre, one step may stop
        short of the farther end.

        Raises:
            InputError: the gradient does not have the shape of the box.
        """
        self._check_shape(gradient)
        reach = self._reach()
        widest = _widest(reach).reshape(-1, *[1] * (reach.dim() - 1))
        return gradient.sign() * (reach / torch.where(widest > 0, widest, 1.0)).to(gradient)

    def support(self, x: Float[Tensor, " batch *shape"], c: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch"]:
        """Return Σ_i max(c_i, 0)·upper_i + min(c_i, 0)·lower_i, rounded up; it does not depend on ``x``."""
        lower, upper = self.bounds(x.double())
        wide = c.double()
        best = wide.clamp_min(0) * upper + wide.clamp_max(0) * lower
        return round_up(best.flatten(1).sum(1), x.dtype)

    def bounds(
        self, x: Float[Tensor, " batch *shape"]
    ) -> tuple[Float[Tensor, " batch *shape"], Float[Tensor, " batch *shape"]]:
        """Return ``lower`` and ``upper`` cut to [low, high], rounded to nearest in the dtype of ``x``.

        Raises:
            InputError: ``x`` does not have the shape of the box, or lies outside it.
        """
        x = self._clean(x)
        self._check_shape(x)
        lower, upper = self.lower.to(x), self.upper.to(x)
        away = torch.maximum(lower - x, x - upper).detach().flatten(1).amax(1)
        outside = away > _TOLERANCE * max(1.0, abs(self.low), abs(self.high))
        if outside.any():
            first = int(outside.nonzero()[0])
            raise InputError(
                f"input {first} lies {float(away[first]):.3g} outside its box; a box holds the clean input it belongs to: "
                "check that both are in the same order, or take the matching part with select(index)."
            )
        return lower, upper

    def select(self, index: Tensor | slice) -> "ThreatSet":
        """Return the boxes of the samples ``index`` (a slice, or a tensor of booleans or positions) of a batch."""
        own = index.to(self.lower.device) if isinstance(index, Tensor) else index
        return dataclasses.replace(self, lower=self.lower[own], upper=self.upper[own])

    def with_eps(self, eps: Radius) -> "ThreatSet":
        """Refuse: a box has ends, no radius that could be replaced.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"a Box has no radius to set to {eps}; make one with other ends, Box(lower, upper), or use Linf(eps)."
        )

    def describe(self) -> str:
        """Return one readable line with the range over the samples of the largest half-width."""
        return self._describe("half-width")

    def _near(self, x: Tensor, z: Tensor, tolerance: float, unit: float) -> Tensor:
        self._check_shape(x)
        slack = tolerance * unit
        return ((z >= self.lower.to(z) - slack) & (z <= self.upper.to(z) + slack)).flatten(1).all(1)

    def _reach(self) -> Tensor:
        return (self.upper - self.lower) / 2

    def _check_shape(self, x: Tensor) -> None:
        if x.shape != self.lower.shape:
            raise InputError(
                f"the boxes have shape {[*self.lower.shape]} but the inputs {[*x.shape]}; "
                "give one interval for every element, or take the matching part with select(index)."
            )

    def _key(self) -> tuple[Any, ...]:
        ends = tuple(self.lower.flatten().tolist()), tuple(self.upper.flatten().tolist())
        return type(self), tuple(self.lower.shape), ends, self.low, self.high


def _numbers(value: Any, side: str) -> Tensor:
    try:
        # A copy: a frozen record must not change when its caller's tensor does.
        found = torch.as_tensor(value).detach().to(torch.float64, copy=True)
    except (TypeError, ValueError, RuntimeError) as problem:
        raise UsageError(f"{side} must be numbers of shape [B, ...]: {problem}.") from None
    require(not bool(found.isnan().any()), f"{side} holds NaN.")
    return found


def _refuse(wrong: Tensor, what: str) -> None:
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        raise UsageError(f"{what} in sample {place[0]}, element {place[1:]}.")


def _widest(reach: Tensor) -> Tensor:
    return reach.flatten(1).amax(1)
