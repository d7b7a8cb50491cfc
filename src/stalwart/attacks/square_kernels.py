"""The compiled loop behind the Square attack's linf search (see ``square_linf.py``): the next proposals that matter."""

from typing import Any

import numpy as np

from stalwart.core.jit import compiled, helper
from stalwart.core.jit_arguments import float32, int64, my_share


@helper
def _changes(best: Any, sides: Any, corner: Any, side: Any, inside: Any) -> Any:
    for channel in range(len(side)):
        for at in range(inside.shape[1]):
            place = corner + inside[channel, at]
            if sides[place + side[channel]] != best[place]:
                return True
    return False


@helper
def _paint(sides: Any, corner: Any, side: Any, inside: Any, out: Any) -> None:
    for channel in range(len(side)):
        for at in range(inside.shape[1]):
            place = corner + inside[channel, at]
            out[place] = sides[place + side[channel]]


@compiled
def following(words: Any) -> None:
    """Write the next points to look at: (N, n, C, P, depth, all, inside, corner, side, sides, best, tried, number, points).

    ``tried`` [B] moves on to the proposal behind the last one written. ``number`` [B, depth] says which proposals ``points``
    [B, depth, N] are; rows without one keep what they hold. With ``all`` those that change nothing are written, too.
    """
    begin, end = my_share(words)
    batch, entries, count, channels, pixels, depth = words[2], words[3], words[4], words[5], words[6], words[7]
    everything = words[8] != 0
    inside = int64(words[9], (channels, pixels))
    corner, side = int64(words[10], (batch, count)), int64(words[11], (batch, count, channels))
    sides, best = float32(words[12], (batch, 2 * entries)), float32(words[13], (batch, entries))
    tried, number = int64(words[14], (batch,)), int64(words[15], (batch, depth))
    points = float32(words[16], (batch, depth, entries))
    for b in range(begin, end):
        at, written = tried[b], np.int64(0)
        while at < count and written < depth:
            if everything or _changes(best[b], sides[b], corner[b, at], side[b, at], inside):
                points[b, written] = best[b]
                _paint(sides[b], corner[b, at], side[b, at], inside, points[b, written])
                number[b, written] = at
                written += 1
            at += 1
        tried[b] = at
