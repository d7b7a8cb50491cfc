"""Straight lines below and above a scalar function on an interval, and how their slopes are chosen.

One rule gives sound lines: any finite slope s is valid with the intercepts max over [l, u] of f(z) - s z above and the minimum
below. For a piecewise-linear f the extremes are at l, u or a kink between them, so no slope needs a division to be sound, and
u = l is no special case. What is left to choose is the slope: that of the convex hull of f's graph (concave hull for upper
lines) at some point of [l, u]. For ReLU and ParamRamp this gives the lines of Lyu et al., 2021 (arXiv 2104.00447).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from stalwart.core.errors import UsageError
from stalwart.core.registry import suggest

Strategy = Literal["tight", "adaptive", "one", "same-slope", "constant"]
"""Which lines to take where a function bends; all are sound.

- "tight": the hull's slope where f is smallest (lower line) or largest (upper line). The lines never leave [min f, max f] on
  [l, u], so bounds are never looser than interval bound propagation (Lyu et al., 2021, theorem 2). For ReLU: 0.
- "adaptive": the hull's slope at the midpoint, which encloses the least area. For ReLU: 1 if u >= -l, else 0.
- "one": the steep side always, that is the hull's piece at the right of f's convex kink and at the left of its concave kink.
  For ReLU: 1. Smooth functions have no such piece and take "adaptive".
- "same-slope": both lines have the slope of the chord from l to u (Fast-Lin, Weng et al., 2018).
- "constant": slopes 0, which makes CROWN and LBP equal to interval bound propagation.
"""


@dataclass(frozen=True, eq=False)
class Lines:
    """lower_slope * z + lower_intercept <= f(z) <= upper_slope * z + upper_intercept for all z in [l, u].

    The tensors are shaped like l, with more leading axes where slopes with more leading axes were given.
    """

    lower_slope: Tensor
    lower_intercept: Tensor
    upper_slope: Tensor
    upper_intercept: Tensor

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four tensors, in this order."""
        return self.lower_slope, self.lower_intercept, self.upper_slope, self.upper_intercept


def constant_lines(low: Tensor, high: Tensor) -> Lines:
    """Return horizontal lines."""
    zero = torch.zeros_like(low)
    return Lines(zero, low, zero, high)


def check_strategy(strategy: str) -> None:
    """Refuse an unknown strategy.

    Raises:
        UsageError: the message lists the known ones.
    """
    known = get_args(Strategy)
    if strategy not in known:
        raise UsageError(f"unknown strategy '{strategy}'.{suggest(strategy, known)} Known: {', '.join(known)}.")


def floor(like: Tensor) -> float:
    """Return the smallest divisor in use: smaller ones have a reciprocal whose square overflows, and gradients hold that.

    Where a divisor is raised to it the slope changes, never the soundness of the line.
    """
    return torch.finfo(like.dtype).tiny ** 0.5
