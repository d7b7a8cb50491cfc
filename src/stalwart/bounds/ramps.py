"""Intervals through ReLU, leaky ReLU and ParamRamp, from centre and reach to centre and reach in one pass each way.

Interval training (Gowal et al., 2018, arXiv 1810.12715) is such passes over large tensors between convolutions: as plain
operators ends, activations, centre and reach take eight of them, and their gradients more.
"""

from typing import Any

import torch
from torch import Tensor

from stalwart.bounds.interval import Interval
from stalwart.core import jit
from stalwart.core.layout import has_channels_last


def takes(x: Interval) -> bool:
    """Tell whether the compiled loops take an interval: made of centre and reach, 32-bit floats without gaps on the CPU."""
    if not x.is_around:
        return False
    z = x.centre
    return z.numel() > 0 and (z.is_contiguous() or has_channels_last(z)) and jit.reads(z, x.reach)


def ramped(x: Interval, length: Tensor | None, eta: float | Tensor) -> Interval:
    """Return the interval of eta z below 0, z up to ``length``, and eta z + (1 - eta) length above.

    Args:
        x: the interval of z [B, ...].
        length: [1, ...], or None for no end.
        eta: the slope outside, in [0, 1); a tensor of no dimensions gets no gradient.
    """
    return Interval.around(*_Ramped.apply(x.centre, x.reach, length, float(eta)))


class _Ramped(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, centre: Tensor, reach: Tensor, length: Tensor | None, eta: float
    ) -> tuple[Tensor, Tensor]:
        from stalwart.bounds import ramp_kernels as kernels

        context.save_for_backward(centre, reach, length)
        context.eta = eta
        out = torch.empty_like(centre), torch.empty_like(centre)
        found = [_rows(part, centre) for part in out]
        sizes = (len(centre), centre[0].numel(), length is not None)
        jit.run(kernels.ramp, sizes[1], *sizes, *_inputs(centre, reach, length, eta), *found)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from stalwart.bounds import ramp_kernels as kernels

        centre, reach, length = context.saved_tensors
        out = torch.empty_like(centre), torch.empty_like(centre)
        given = [_rows(part, centre) for part in (*gradients, *out)]
        total = _rows(torch.zeros_like(centre[:1]), centre)
        sizes = (len(centre), centre[0].numel(), length is not None)
        jit.run(kernels.ramp_backward, sizes[1], *sizes, *_inputs(centre, reach, length, context.eta), *given, total)
        if length is None:
            return *out, None, None
        return *out, total.permute(0, 3, 1, 2) if has_channels_last(centre) else total, None


def _inputs(centre: Tensor, reach: Tensor, length: Tensor | None, eta: float) -> tuple[Tensor, ...]:
    one = torch.tensor([eta], dtype=centre.dtype)
    return _rows(centre, centre), _rows(reach, centre), one if length is None else _rows(length, centre), one


def _rows(tensor: Tensor, z: Tensor) -> Tensor:
    """Return ``tensor`` in the order that z has in memory."""
    return (tensor.permute(0, 2, 3, 1) if has_channels_last(z) else tensor).contiguous()
