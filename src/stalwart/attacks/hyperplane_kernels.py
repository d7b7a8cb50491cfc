"""The compiled loop behind the shortest linf step to a hyperplane (see ``hyperplanes.py``): one pass over memory a row."""

from typing import Any

import numpy as np

from stalwart.core.jit import compiled, summing
from stalwart.core.jit_arguments import float32, my_share

_TURNS = 60


@summing
def _total(slope: Any) -> Any:
    total = np.float32(0.0)
    for i in range(len(slope)):
        total += abs(slope[i])
    return total


@summing
def _beyond(slope: Any, room: Any, level: Any) -> Any:
    """Return what coordinates at their faces contribute, and how steep the others are together."""
    spent, moving = np.float32(0.0), np.float32(0.0)
    for i in range(len(slope)):
        steepness = abs(slope[i])
        full = room[i] <= level
        spent += steepness * room[i] if full else np.float32(0.0)
        moving += np.float32(0.0) if full else steepness
    return spent, moving


@summing
def _rooms(z: Any, slope: Any, way: Any, low: Any, high: Any, room: Any) -> None:
    for i in range(len(slope)):
        left = high - z[i] if slope[i] * way > np.float32(0.0) else z[i] - low
        room[i] = max(left, np.float32(0.0))


@summing
def _signed(slope: Any, way: Any, level: Any, step: Any) -> None:
    for i in range(len(slope)):
        size = min(level, step[i])
        up = slope[i] * way
        step[i] = size if up > np.float32(0.0) else (-size if up < np.float32(0.0) else np.float32(0.0))


@compiled
def step(words: Any) -> None:
    """Write the shortest steps [B, n]: (n, bounds, z, slope, gap, out), with bounds (low, high) and gap [B]."""
    begin, end = my_share(words)
    batch, entries = words[2], words[3]
    bounds = float32(words[4], (2,))
    z, slope = float32(words[5], (batch, entries)), float32(words[6], (batch, entries))
    gap, out = float32(words[7], (batch,)), float32(words[8], (batch, entries))
    for b in range(begin, end):
        way = np.float32(1.0) if gap[b] >= np.float32(0.0) else np.float32(-1.0)
        reach = abs(gap[b])
        _rooms(z[b], slope[b], way, bounds[0], bounds[1], out[b])
        total = _total(slope[b])
        level = (
            reach / total
            if total > np.float32(0.0)
            else (np.float32(np.inf) if reach > np.float32(0.0) else np.float32(0.0))
        )
        for _ in range(_TURNS):
            spent, moving = _beyond(slope[b], out[b], level)
            if moving <= np.float32(0.0):
                level = np.float32(np.inf)
                break
            after = max((reach - spent) / moving, level)
            if not after > level * np.float32(1.000001):
                break
            level = after
        _signed(slope[b], way, level, out[b])
