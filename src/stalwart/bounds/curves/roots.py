"""Zeros of monotone functions, entry by entry."""

from collections.abc import Callable

import torch
from torch import Tensor

_HALVINGS, _NEWTON_STEPS = 6, 6


def root(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    low: Tensor,
    high: Tensor,
    rising: bool,
    reach: float,
) -> Tensor:
    """Return where a monotone function is 0 on [low, high], nearly; an end where it has one sign throughout.

    Six halvings of the part of [low, high] within ``reach`` of 0, then six Newton steps cut to the bracket. The function
    returns its value and its derivative.
    """
    left, right = low.clamp(-reach, reach), high.clamp(-reach, reach)
    x = (left + right) / 2
    for step in range(_HALVINGS + _NEWTON_STEPS):
        value, derivative = function(x)
        ahead = value < 0 if rising else value > 0
        left, right = torch.where(ahead, x, left), torch.where(ahead, right, x)
        middle, following = (left + right) / 2, x - value / derivative
        # Cut to the bracket rather than replaced by its middle: at the zero, rounding may put a step just outside.
        newton = torch.where(following.isnan(), middle, torch.minimum(torch.maximum(following, left), right))
        x = middle if step < _HALVINGS else newton
    first, last = function(low)[0], function(high)[0]
    before, behind = (first >= 0, last <= 0) if rising else (first <= 0, last >= 0)
    return torch.where(before, low, torch.where(behind, high, x))
