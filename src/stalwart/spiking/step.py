"""One time step of a neuron as two functions of its membrane, each an operator of its own: what it emits and what it keeps.

    s = 1[u >= θ]        v = u - θ s  (soft reset)    or    v = u (1 - s)  (hard reset)

A fused call over all time steps is fast, but no bound passes it. Stepwise (:mod:`stalwart.spiking.stepwise`) the same
dynamics are these operators and linear ones, which every bounding method walks through.
"""

from typing import Any

import torch
from torch import Tensor

from stalwart.core.modes import is_elementary


@torch.library.custom_op("stalwart::fire", mutates_args=())
def _fire(membrane: Tensor, threshold: Tensor, strict: bool) -> Tensor:
    return _above(membrane, threshold, strict).to(membrane)


@_fire.register_fake
def _(membrane: Tensor, threshold: Tensor, strict: bool) -> Tensor:
    return torch.empty_like(membrane)


@torch.library.custom_op("stalwart::keep", mutates_args=())
def _keep(membrane: Tensor, threshold: Tensor, hard: bool, strict: bool) -> Tensor:
    return _left(membrane, threshold, hard, strict)


@_keep.register_fake
def _(membrane: Tensor, threshold: Tensor, hard: bool, strict: bool) -> Tensor:
    return torch.empty_like(membrane)


def fire(membrane: Tensor, threshold: Tensor, strict: bool) -> Tensor:
    """Return 1 where the membrane [B, ...] reaches the threshold, or exceeds it if ``strict``, else 0."""
    if is_elementary():
        return _above(membrane, threshold, strict).to(membrane.dtype)
    found: Tensor = _fire(membrane, threshold, strict)
    return found


def keep(membrane: Tensor, threshold: Tensor, hard: bool, strict: bool) -> Tensor:
    """Return what is left of the membrane [B, ...] after it fired: u - θ, or 0 if ``hard``; elsewhere u itself."""
    found: Tensor = (_left if is_elementary() else _keep)(membrane, threshold, hard, strict)
    return found


def _left(membrane: Tensor, threshold: Tensor, hard: bool, strict: bool) -> Tensor:
    left = torch.zeros_like(membrane) if hard else membrane - threshold
    return torch.where(_above(membrane, threshold, strict), left, membrane)


def _above(membrane: Tensor, threshold: Tensor, strict: bool) -> Tensor:
    return membrane > threshold if strict else membrane >= threshold


def _nothing(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    raise RuntimeError("stepwise spikes carry no gradient; bounds differentiate their own, attacks the fused call.")


_fire.register_autograd(_nothing)
_keep.register_autograd(_nothing)
