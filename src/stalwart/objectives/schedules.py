"""What changes while a certified network is trained, as pure functions of the time since the start in epochs."""

from dataclasses import dataclass
from typing import Literal

import pydantic

from stalwart.core.numbers import Number, require

_MIDDLE, _POWER = 0.25, 4.0


@dataclass(frozen=True, kw_only=True)
class Anneal:
    """A value that goes from ``start`` to ``end`` between the epochs ``begin`` and ``begin + over``, constant before and after.

    Smooth, with t₀ the beginning, t₁ the end, Δ = end - start and a first quarter up to t_m = t₀ + d, d = (t₁ - t₀) / 4:

        start + α (t - t₀)⁴  on the first quarter, then linear:  start + α d⁴ + 4 α d³ (t - t_m),
        α = Δ / (4 (t₁ - t_m) d³ + d⁴),

    so that value and slope are continuous at t_m. Source: the authors' code of Lyu et al., CVPR 2021, and of Shi et al.,
    NeurIPS 2021.

    Attributes:
        start, end: the values before and after.
        begin: epoch it begins to change at, fractions count.
        over: epochs it takes; 0 for a jump.
        shape: "linear" or "smooth".
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    start: Number
    end: Number
    begin: Number = 0.0
    over: Number = 0.0
    shape: Literal["linear", "smooth"] = "linear"

    def __post_init__(self) -> None:
        require(self.begin >= 0, f"begin must be at least 0 epochs, got {self.begin}.")
        require(self.over >= 0, f"over must be at least 0 epochs, got {self.over}.")

    def at(self, time: float | int) -> float:
        """Return the value at ``time`` epochs since the start of the run."""
        # At its beginning a change of length 0 has happened: the epoch ``begin`` is trained with ``end``.
        if time >= self.begin + self.over:
            return float(self.end)
        if time <= self.begin:
            return float(self.start)
        share = (time - self.begin) / self.over
        return float(self.start + (self.end - self.start) * (share if self.shape == "linear" else _smooth(share)))


def _smooth(share: float) -> float:
    """Rise from 0 to 1 over [0, 1]: a power on the first quarter, then its tangent."""
    scale = 1 / ((1 - _MIDDLE) * _POWER * _MIDDLE ** (_POWER - 1) + _MIDDLE**_POWER)
    if share <= _MIDDLE:
        return scale * share**_POWER
    return scale * (_MIDDLE**_POWER + _POWER * _MIDDLE ** (_POWER - 1) * (share - _MIDDLE))


@dataclass(frozen=True, kw_only=True)
class Tied:
    """A weight tied to the radius: start - (start - end) eps / eps_max, as kappa and beta are.

    Source: Gowal et al., 2018, section 3 (kappa); Zhang et al., ICLR 2020 (arXiv 1906.06316), section 3.2 (beta).
    """

    start: Number
    end: Number

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            require(0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1], got {getattr(self, name)}.")

    def at(self, share: float | int) -> float:
        """Return the weight at the share eps / eps_max of the final radius."""
        return float(self.start - (self.start - self.end) * share)
