"""Seeded randomness without hidden state.

Every random number in the library comes from an explicit ``torch.Generator`` whose seed is derived from a root seed and
a path of names, such as ``derive(0, "train", "noise", step)``. A job that is resumed at step ``t`` therefore draws what
the uninterrupted job would have drawn, with no generator state to store.

Under data-parallel training each process holds some rows of the global batch. Inside :func:`shard` the draws below are
made for the whole global batch and the process keeps its own rows, so that two processes see exactly the noise that
one process with the same global batch sees.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor

_shard: ContextVar[tuple[int, int]] = ContextVar("stalwart_shard", default=(0, 1))


def derive(seed: int, *path: object) -> int:
    """Return a 63-bit seed for the given path below a root seed; different paths give independent streams."""
    text = "/".join([str(int(seed)), *map(str, path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *path: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator on ``device`` seeded by :func:`derive`."""
    return torch.Generator(device=device).manual_seed(derive(seed, *path))


@contextlib.contextmanager
def shard(rank: int, world: int) -> Iterator[None]:
    """Draw for a global batch of ``world`` equal parts and keep part ``rank`` (see the module's first lines)."""
    token = _shard.set((rank, world))
    try:
        yield
    finally:
        _shard.reset(token)


def normal(shape: Sequence[int], source: torch.Generator, like: Tensor, batch_axis: int | None = 0) -> Tensor:
    """Draw N(0, 1) of ``shape`` with the dtype and device of ``like``; ``batch_axis=None`` for a draw all ranks share."""
    whole, own = _layout(shape, batch_axis)
    return torch.randn(whole, generator=source, dtype=like.dtype, device=like.device)[own]


def uniform(shape: Sequence[int], source: torch.Generator, like: Tensor, batch_axis: int | None = 0) -> Tensor:
    """Draw U[0, 1) of ``shape`` with the dtype and device of ``like``; ``batch_axis`` as in :func:`normal`."""
    whole, own = _layout(shape, batch_axis)
    return torch.rand(whole, generator=source, dtype=like.dtype, device=like.device)[own]


def _layout(shape: Sequence[int], batch_axis: int | None) -> tuple[list[int], tuple[slice, ...]]:
    rank, world = _shard.get()
    whole = list(shape)
    if world == 1 or batch_axis is None:
        return whole, (slice(None),) * len(whole)
    rows = whole[batch_axis]
    whole[batch_axis] = rows * world
    own = [slice(None)] * len(whole)
    own[batch_axis] = slice(rank * rows, (rank + 1) * rows)
    return whole, tuple(own)


@contextlib.contextmanager
def isolated(seed: int, per_rank: bool = False) -> Iterator[None]:
    """Seed torch's global generators inside the block, for models that draw from them, and restore them afterwards.

    With ``per_rank`` each process of a :func:`shard` gets a seed of its own, as dropout masks over its own rows need.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    rank, world = _shard.get()
    own = derive(seed, "global", rank) if per_rank and world > 1 else derive(seed, "global")
    with torch.random.fork_rng(devices=devices):
        # torch.manual_seed would also queue a seed for GPUs that are not in use yet, and nothing would take it back.
        torch.default_generator.manual_seed(own)
        if devices:
            torch.cuda.manual_seed_all(own)
        yield
