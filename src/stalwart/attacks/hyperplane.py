"""The least change that a linear function needs to grow by a given amount, inside a box: exact, in every norm."""

import torch
from torch import Tensor


def least_change(gap: Tensor, slope: Tensor, lower: Tensor, upper: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Return the δ of least norm with <slope, δ> = gap and lower <= δ <= upper, and what of the gap is left.

    l2 and linf: δ_i = sign(s_i) min(t r_i, room_i) with r = |s| and r = 1; the gain Σ |s_i| min(t r_i, room_i) is piecewise
    linear in t, so that sorting the places room_i / r_i finds t. l1: coordinates move to their face in order of falling |s_i|,
    the last one as far as it must. Where the box is too small for the gap, δ is its best corner.

    Args:
        gap: how much the function has to grow [B], at least 0.
        slope: s [B, n].
        lower: least changes [B, n], at most 0.
        upper: largest changes [B, n], at least 0.
        norm: "linf", "l2" or "l1".

    Returns:
        δ [B, n] and the gap that is left [B], 0 but for rounding where the box is large enough.
    """
    need, size = gap.double(), slope.double().abs()
    room = torch.where(slope > 0, upper, -lower).double().clamp_min(0)
    room = torch.where(size > 0, room, 0.0)
    move = _knapsack(need, size, room) if norm == "l1" else _level(need, size, room, norm == "l2")
    left = (need - (size * move).sum(1)).clamp_min(0)
    return (slope.sign() * move).to(slope.dtype), left.to(slope.dtype)


def _level(need: Tensor, size: Tensor, room: Tensor, proportional: bool) -> Tensor:
    rate = size if proportional else (size > 0).double()
    meets, order = (room / rate.clamp_min(torch.finfo(rate.dtype).tiny)).sort(1)
    stopped = (size * room).gather(1, order).cumsum(1)
    speed = (size * rate).gather(1, order)
    # A sum from the far end, not a difference of two sums, which would cancel.
    moving = speed.flip(1).cumsum(1).flip(1)
    after = torch.nn.functional.pad(moving[:, 1:], (0, 1))
    count = (stopped + meets * after <= need[:, None]).sum(1, keepdim=True)
    last = count.clamp_max(size.shape[1] - 1)
    before = torch.nn.functional.pad(stopped, (1, 0)).gather(1, last)
    speed_there = moving.gather(1, last)
    level = (need[:, None] - before).clamp_min(0) / speed_there.clamp_min(torch.finfo(rate.dtype).tiny)
    level = torch.where(count == size.shape[1], torch.inf, level)
    return torch.where(rate > 0, level * rate, 0.0).minimum(room)


def _knapsack(need: Tensor, size: Tensor, room: Tensor) -> Tensor:
    ranked, order = size.sort(1, descending=True)
    whole = room.gather(1, order)
    gained = (ranked * whole).cumsum(1)
    before = torch.nn.functional.pad(gained[:, :-1], (1, 0))
    missing = (need[:, None] - before).clamp_min(0) / ranked.clamp_min(torch.finfo(size.dtype).tiny)
    return torch.zeros_like(size).scatter(1, order, missing.minimum(whole))
