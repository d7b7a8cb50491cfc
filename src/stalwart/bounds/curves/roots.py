"""Zeros of monotone functions, entry by entry."""

from collections.abc import Callable

import torch
from torch import Tensor

_HALVINGS, _NEWTON_STEPS = 8, 8


def root(
    function: Callable[[Tensor], Tensor],
    derivative: Callable[[Tensor], Tensor],
    low: Tensor,
    high: Tensor,
    rising: bool,
    reach: float,
) -> Tensor:
    """Return where a monotone function is 0 on [low, high], nearly; an end where it has one sign throughout.

    Eight halvings of the part of [low, high] within ``reach`` of 0, then Newton steps that may not leave the bracket.
    The result is a constant for differentiation.
    """
    with torch.no_grad():
        left, right = low.clamp(-reach, reach), high.clamp(-reach, reach)
        x = (left + right) / 2
        for step in range(_HALVINGS + _NEWTON_STEPS):
            value = function(x)
            ahead = value < 0 if rising else value > 0
            left, right = torch.where(ahead, x, left), torch.where(ahead, right, x)
            x, following = (left + right) / 2, x - value / derivative(x)
            if step >= _HALVINGS:
                x = torch.where((following >= left) & (following <= right), following, x)
        first, last = function(low), function(high)
        before, behind = (first >= 0, last <= 0) if rising else (first <= 0, last >= 0)
        return torch.where(before, low, torch.where(behind, high, x))
