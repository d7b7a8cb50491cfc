"""Large tensors on the CPU from memory that is used again.

The system takes memory blocks above 32 MiB back as soon as they are freed, and at their next use fills each page with zeros
anew, which takes longer than most of what is then computed in them. Blocks from here stay with the process for the next
tensor of about their size; what is kept unused never exceeds :data:`KEPT` bytes.
"""

import collections
import math
import weakref

import numpy as np
import torch
from torch import Tensor

LEAST = 16 * 2**20
"""Smaller tensors come from torch's own allocator."""
KEPT = 256 * 2**20
"""How many bytes wait unused at most."""

_FREE: collections.deque[np.ndarray] = collections.deque()


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return an uninitialised contiguous tensor of the dtype and device of ``like``."""
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or size < LEAST:
        return like.new_empty(shape)
    block = _take(size)
    view = block[:size]
    # The tensor's storage holds the view, and lets go of it when the last tensor of that storage is gone.
    weakref.finalize(view, _give, block).atexit = False
    return torch.from_numpy(view).view(like.dtype).view(shape)


def _take(size: int) -> np.ndarray:
    for _ in range(len(_FREE)):
        try:
            block = _FREE.popleft()
        except IndexError:
            break
        if size <= block.nbytes <= 2 * size:
            return block
        _FREE.append(block)
    return np.empty(size, np.uint8)


def _give(block: np.ndarray) -> None:
    # Called wherever a tensor dies, on any thread: each operation on the queue is atomic.
    _FREE.append(block)
    while sum(one.nbytes for one in tuple(_FREE)) > KEPT:
        try:
            _FREE.popleft()
        except IndexError:
            return
