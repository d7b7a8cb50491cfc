"""The order of samples in an epoch: a pure function of the seed and the epoch."""

import torch
from torch import Tensor

from stalwart.core.numbers import require
from stalwart.core.random import generator


def epoch_batches(
    n: int, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1, drop_last: bool = True
) -> list[Tensor]:
    """Return the positions of each batch of one epoch, in a random order that depends on ``(seed, epoch)`` alone.

    With several processes each global batch is cut into ``world`` equal consecutive parts and process ``rank`` gets
    its own, so that together they see the batches that one process sees. A batch smaller than ``batch_size`` loses
    the up to ``world - 1`` samples that cannot be shared equally.

    Args:
        n: how many samples there are.
        batch_size: samples in a global batch, over all processes.
        seed: the root seed.
        epoch: from 0.
        rank: this process, 0 to ``world - 1``.
        world: how many processes there are.
        drop_last: leave out an incomplete last batch; if that would leave none, one batch of all samples is used.

    Returns:
        int64 positions, [batch_size / world] each.

    Raises:
        UsageError: there are fewer samples than processes, or ``batch_size`` is not a positive multiple of ``world``.
    """
    require(world >= 1 and 0 <= rank < world, f"rank {rank} is not one of {world} processes.")
    require(
        batch_size >= 1 and batch_size % world == 0,
        f"batch_size {batch_size} cannot be shared equally by {world} processes; use a positive multiple of {world}.",
    )
    require(n >= world, f"{n} samples cannot give each of {world} processes one; use more data or fewer processes.")
    order = torch.randperm(n, generator=generator(seed, "epoch", epoch))
    whole = n // batch_size * batch_size
    batches = list(order[:whole].split(batch_size)) if whole else []
    rest = (n - whole) // world * world
    if rest and (not batches or not drop_last):
        batches.append(order[whole : whole + rest])
    return [batch.chunk(world)[rank] for batch in batches]
