"""Intervals through ReLU, leaky ReLU and ParamRamp, from centre and reach to centre and reach in one pass each way.

Interval training (Gowal et al., 2018, arXiv 1810.12715) is such passes over large tensors between convolutions: as plain
operators ends, activations, centre and reach take eight of them, and their gradients more.
"""

from typing import Any

import torch
from torch import Tensor

from stalwart.bounds.interval import Interval
from stalwart.bounds.piecewise import Clip, Hinge
from stalwart.core import jit
from stalwart.core.layout import as_stored, has_channels_last, has_no_gaps


def passed(function: object, x: Interval) -> Interval | None:
    """Return the function's interval, None where it is no ramp or the compiled loops do not take the interval.

    They take one made of centre and reach, 32-bit floats without gaps on the CPU.
    """
    if not (x.is_around and has_no_gaps(x.centre) and jit.reads(x.centre, x.reach)):
        return None
    if isinstance(function, Hinge) and not any(
        isinstance(one, Tensor) for one in (function.left, function.right, function.at)
    ):
        rises = function.at == 0 and function.right == 1 and 0 <= function.left <= 1
        return ramped(x, None, function.left) if rises else None
    if isinstance(function, Clip) and isinstance(function.high, Tensor) and not isinstance(function.low, Tensor):
        each = function.high.shape == (1, *x.centre.shape[1:]) and jit.reads(function.high)
        return ramped(x, function.high, function.outer) if each and function.low == 0 else None
    return None


def ramped(x: Interval, length: Tensor | None, eta: float | Tensor) -> Interval:
    """Return the interval of eta z below 0, z up to ``length``, and eta z + (1 - eta) length above.

    Args:
        x: the interval of z [B, ...].
        length: [1, ...], or None for no end.
        eta: the slope outside, in [0, 1]; a tensor of no dimensions gets no gradient.
    """
    if length is None:
        length = torch.full_like(x.centre[:1], torch.inf, requires_grad=False)
    return Interval.around(*_Ramped.apply(x.centre, x.reach, length, float(eta)))


class _Ramped(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, centre: Tensor, reach: Tensor, length: Tensor, eta: float) -> tuple[Tensor, Tensor]:
        from stalwart.bounds import ramp_kernels as kernels

        context.save_for_backward(centre, reach, length)
        context.eta = eta
        out = torch.empty_like(centre), torch.empty_like(centre)
        _run(kernels.ramp, eta, centre, reach, length, *out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from stalwart.bounds import ramp_kernels as kernels

        centre, reach, length = context.saved_tensors
        out = torch.empty_like(centre), torch.empty_like(centre)
        total = torch.zeros_like(as_stored(length, centre))
        _run(kernels.ramp_backward, context.eta, centre, reach, length, *gradients, *out, extra=(total,))
        return *out, total.permute(0, 3, 1, 2) if has_channels_last(centre) else total, None


def _run(loop: Any, eta: float, centre: Tensor, *others: Tensor, extra: tuple[Tensor, ...] = ()) -> None:
    size = centre[0].numel()
    stored = [as_stored(one, centre) for one in (centre, *others)]
    jit.run(loop, size, len(centre), size, torch.tensor([eta], dtype=centre.dtype), *stored, *extra)
