"""The shortest step from a point of the box to a hyperplane, in the linf, l2 or l1 norm, kept inside the box."""

from typing import Literal

import torch
from torch import Tensor

from stalwart.core import jit

Norm = Literal["linf", "l2", "l1"]

_TURNS = 60
"""More rounds than the search for a multiplier takes; each passes all corners up to a better one."""

_WORTH = 2**15
"""Entries from which the compiled loop pays for being loaded."""


def step_to_hyperplane(norm: Norm, z: Tensor, slope: Tensor, gap: Tensor, low: float, high: float) -> Tensor:
    """Return the d [B, n] of least norm with <slope, d> = gap and low <= z + d <= high.

    Where the box and the hyperplane do not meet, d leads to the corner of the box that is nearest to it, i.e. with <slope, d>
    as close to the gap as possible.

    With m_i = |slope_i| and room_i, the way to the face that coordinate i moves towards, the solutions are

        linf: |d_i| = min(λ, room_i),   l2: |d_i| = min(λ m_i, room_i),   both with the λ for which Σ_i m_i |d_i| = |gap|,
        l1:   |d_i| = room_i in the order of falling m_i until the gap is bridged.

    Σ_i m_i |d_i| is concave in λ and linear between its corners, so that Newton's iteration climbs to λ from below and ends
    exactly there after a few rounds, without sorting. All is computed in the dtype of the slope.

    Source: Croce and Hein, ICML 2020 (arXiv 1907.02044), section 2.1 and appendix A (which sort).

    Args:
        norm: "linf", "l2" or "l1".
        z: points [B, n] of the box.
        slope: normals [B, n].
        gap: what <slope, d> is to be [B].
        low: smallest valid value.
        high: largest valid value.
    """
    if norm == "linf" and _compiles(z, slope, gap):
        return _compiled_step(z, slope, gap, low, high)
    uphill = torch.where(gap >= 0, 1.0, -1.0).to(slope)[:, None] * slope
    # Where the slope is 0 there is room all the same: it yields nothing, and the sign takes the step away.
    room = torch.where(uphill > 0, high - z, z - low).clamp_min_(0)
    steepness = slope.abs()
    size = _knapsack(steepness, room, gap.abs()) if norm == "l1" else _filled(norm, steepness, room, gap.abs())
    return uphill.sign_().mul_(size)


def steps_to_hyperplanes(
    norm: Norm, z: Tensor, slope: Tensor, gap: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the shortest steps from each point to several hyperplanes, their lengths, and how far they fall short.

    Args:
        norm, low, high: as in :func:`step_to_hyperplane`.
        z: points [B, n] of the box.
        slope: normals [B, C, n].
        gap: [B, C], at least 0.

    Returns:
        steps [B, C, n], lengths [B, C], and the share in [0, 1] of each gap that the box does not let the step close [B, C].
    """
    rows, flat, need = z.repeat_interleave(gap.shape[1], 0), slope.flatten(0, 1), gap.flatten()
    step = step_to_hyperplane(norm, rows, flat, need, low, high)
    missing = (need - torch.linalg.vecdot(flat, step)) / need.clamp_min(torch.finfo(need.dtype).tiny)
    return step.view_as(slope), lengths(norm, step).view_as(gap), missing.clamp(0, 1).view_as(gap)


def _compiles(z: Tensor, *tensors: Tensor) -> bool:
    tensors = (z, *tensors)
    return z.numel() >= _WORTH and jit.reads(*tensors) and not any(one.requires_grad for one in tensors)


def _compiled_step(z: Tensor, slope: Tensor, gap: Tensor, low: float, high: float) -> Tensor:
    from stalwart.attacks import hyperplane_kernels as kernels

    out = torch.empty(z.shape)
    bounds = torch.tensor([low, high])
    jit.run(kernels.step, len(z), z.shape[1], bounds, z.contiguous(), slope.contiguous(), gap.contiguous(), out)
    return out


def _filled(norm: Norm, steepness: Tensor, room: Tensor, reach: Tensor) -> Tensor:
    """Return min(λ rate, room) [B, n] whose product with the steepness is ``reach`` [B]."""
    rate = None if norm == "linf" else _scaled(steepness)
    yields = steepness if rate is None else steepness * rate
    gains = steepness * room
    corner = room if rate is None else (room / rate).nan_to_num_(nan=0.0)
    total = yields.sum(1)
    level = (reach / total).nan_to_num_(nan=0.0)
    for _ in range(_TURNS):
        full = (corner <= level[:, None]).to(gains)
        spent = torch.linalg.vecdot(gains, full)
        moving = torch.linalg.vecdot(yields, full.neg_().add_(1))
        # With all at their faces the level is of no more matter.
        after = torch.where(moving > 0, (reach - spent) / moving, torch.inf).maximum(level)
        # Once all rooms are used up the gap is out of reach; rounding must not keep the rest going either.
        if not (after > level * (1 + 1e-6)).any():
            break
        level = after
    amount = level[:, None] if rate is None else (level[:, None] * rate).nan_to_num_(nan=0.0)
    return torch.minimum(amount, room)


def _scaled(steepness: Tensor) -> Tensor:
    """Return steepness [B, n] times a power of two a row, so that its products neither vanish nor overflow."""
    _, exponent = torch.frexp(steepness.amax(1, keepdim=True))
    return torch.ldexp(steepness, -exponent.clamp_min(-120))


def _knapsack(steepness: Tensor, room: Tensor, reach: Tensor) -> Tensor:
    order = steepness.argsort(1, descending=True)
    gains = (steepness * room).gather(1, order)
    before = gains.cumsum(1) - gains
    share = ((reach[:, None] - before) / gains).nan_to_num_(nan=0.0).clamp_(0, 1)
    return room * torch.zeros_like(room).scatter_(1, order, share)


def lengths(norm: Norm, step: Tensor) -> Tensor:
    """Return the norm [B] of steps [B, n]."""
    if norm == "linf":
        return step.abs().amax(1)
    return torch.linalg.vector_norm(step, ord=2 if norm == "l2" else 1, dim=1)
