"""What compiled loops do with one block of neurons at one time step, all of it held in the first-level cache.

All that a block works on lies in one array, in slots of fixed length at fixed places: only then does the compiler see that they
do not overlap, and uses vector instructions. ``one`` is 1 in the type of the numbers; ``reset`` is 0 soft, 1 hard, 2 none.
"""

import math
from typing import Any

import numpy as np

from stalwart.core.jit import helper

BLOCK = 512
"""Neurons of a block."""

# Slots: current, gradient of the spikes, membrane, kept membrane, leak, threshold, what the gradient of the membrane carries
# to the step before, σ'(z) / θ, room for intermediate values, spikes, sums of gradients (of held currents, leak, threshold),
# and 1 / θ.
X, G, U, V, LEAK, LEVEL, CARRY, SLOPE, ROOM, S, SUM, OF_LEAK, OF_LEVEL, INVERSE = (BLOCK * k for k in range(14))
SLOTS = 14 * BLOCK


@helper
def fill(w: Any, slot: Any, value: Any) -> None:
    """Write one value all over a slot."""
    for j in range(BLOCK):
        w[slot + j] = value


@helper
def integrate_first(w: Any, reset: Any, one: Any) -> None:
    """From kept membrane and current: the new membrane, its spikes, and what is kept of it."""
    zero = one - one
    if reset == 0:
        for j in range(BLOCK):
            u = w[LEAK + j] * w[V + j] + w[X + j]
            fires = u >= w[LEVEL + j]
            w[U + j] = u
            w[S + j] = one if fires else zero
            w[V + j] = u - (w[LEVEL + j] if fires else zero)
    elif reset == 1:
        for j in range(BLOCK):
            u = w[LEAK + j] * w[V + j] + w[X + j]
            fires = u >= w[LEVEL + j]
            w[U + j] = u
            w[S + j] = one if fires else zero
            w[V + j] = zero if fires else u
    else:
        for j in range(BLOCK):
            u = w[LEAK + j] * w[V + j] + w[X + j]
            w[U + j] = u
            w[S + j] = one if u >= w[LEVEL + j] else zero
            w[V + j] = u


@helper
def fire_first(w: Any, reset: Any, one: Any) -> None:
    """From the membrane in V: its spikes, and the membrane after this step's current in U."""
    zero = one - one
    for j in range(BLOCK):
        w[S + j] = one if w[V + j] > w[LEVEL + j] else zero
    if reset == 0:
        for j in range(BLOCK):
            w[U + j] = (w[LEAK + j] * w[V + j] + w[X + j]) - w[LEVEL + j] * w[S + j]
    elif reset == 1:
        for j in range(BLOCK):
            w[U + j] = w[LEAK + j] * (w[V + j] if w[S + j] == zero else zero) + w[X + j]
    else:
        for j in range(BLOCK):
            w[U + j] = w[LEAK + j] * w[V + j] + w[X + j]


@helper
def _exponentials(w: Any, bits: Any) -> None:
    """Write exp(ROOM), of numbers <= 0, to SLOPE: with vector instructions for 32 bits; the library takes one at a time."""
    if w.itemsize == 8:
        for j in range(BLOCK):
            w[SLOPE + j] = math.exp(w[ROOM + j])
        return
    for j in range(BLOCK):
        y = max(w[ROOM + j], np.float32(-87.0)) * np.float32(1.44269504088896341)
        whole = np.int32(y - np.float32(0.5))
        # exp(x) = 2^whole 2^f with |f| <= 1/2, the second factor by its Taylor polynomial in f ln 2.
        f = (y - np.float32(whole)) * np.float32(0.693147180559945309)
        p = np.float32(1.0 / 5040) * f + np.float32(1.0 / 720)
        p = p * f + np.float32(1.0 / 120)
        p = p * f + np.float32(1.0 / 24)
        p = p * f + np.float32(1.0 / 6)
        p = p * f + np.float32(0.5)
        p = p * f + np.float32(1.0)
        p = p * f + np.float32(1.0)
        w[ROOM + j] = p
        bits[SLOPE + j] = (whole + np.int32(127)) << np.int32(23)
    for j in range(BLOCK):
        w[SLOPE + j] *= w[ROOM + j]


@helper
def slopes(w: Any, bits: Any, kind: Any, a: Any, b: Any, one: Any) -> None:
    """Write σ'(u / θ - 1) / θ of the membranes in U to SLOPE."""
    zero = one - one
    if kind == 0:
        for j in range(BLOCK):
            z = abs(w[U + j] * w[INVERSE + j] - one)
            w[SLOPE + j] = a * max(b - z, zero) * w[INVERSE + j]
    elif kind == 1 or kind == 5:
        for j in range(BLOCK):
            z = abs(w[U + j] * w[INVERSE + j] - one)
            w[ROOM + j] = -b * z * (one if kind == 1 else z)
        _exponentials(w, bits)
        for j in range(BLOCK):
            w[SLOPE + j] *= a * w[INVERSE + j]
    elif kind == 2:
        for j in range(BLOCK):
            z = abs(w[U + j] * w[INVERSE + j] - one)
            w[SLOPE + j] = (a if z < b else zero) * w[INVERSE + j]
    elif kind == 3:
        for j in range(BLOCK):
            z = b * (w[U + j] * w[INVERSE + j] - one)
            w[SLOPE + j] = a * w[INVERSE + j] / (one + z * z)
    elif kind == 4:
        for j in range(BLOCK):
            z = one + b * abs(w[U + j] * w[INVERSE + j] - one)
            w[SLOPE + j] = a * w[INVERSE + j] / (z * z)
    else:
        for j in range(BLOCK):
            w[SLOPE + j] = a * w[INVERSE + j]


@helper
def pull_integrated(w: Any, reset: Any, part: Any, learns: Any, one: Any) -> None:
    """Turn the gradient of what is kept, in CARRY, into that of the membrane in U. ``part`` is 1 where resets are attached."""
    zero = one - one
    if learns:
        for j in range(BLOCK):
            # ds/dθ = -σ' u / θ²; the kept membrane loses θ s, or u s.
            of_spike = -w[SLOPE + j] * w[U + j] * w[INVERSE + j]
            spike = one if w[U + j] >= w[LEVEL + j] else zero
            lost = part * (w[LEVEL + j] if reset == 0 else w[U + j] if reset == 1 else zero)
            change = w[G + j] * of_spike - w[CARRY + j] * lost * of_spike
            w[OF_LEVEL + j] += change - (w[CARRY + j] * spike if reset == 0 else zero)
    if reset == 1:
        for j in range(BLOCK):
            stays = (zero if w[U + j] >= w[LEVEL + j] else one) - part * w[U + j] * w[SLOPE + j]
            w[CARRY + j] = w[G + j] * w[SLOPE + j] + w[CARRY + j] * stays
    elif reset == 0 and part > zero:
        for j in range(BLOCK):
            stays = one - w[LEVEL + j] * w[SLOPE + j]
            w[CARRY + j] = w[G + j] * w[SLOPE + j] + w[CARRY + j] * stays
    else:
        for j in range(BLOCK):
            w[CARRY + j] += w[G + j] * w[SLOPE + j]


@helper
def of_leak(w: Any, reset: Any, one: Any) -> None:
    """Add to the leak's gradient what the membrane of the step before, in V, brought: what was kept of it, times CARRY."""
    zero = one - one
    for j in range(BLOCK):
        fires = w[V + j] >= w[LEVEL + j]
        lost = (w[LEVEL + j] if reset == 0 else w[V + j] if reset == 1 else zero) if fires else zero
        w[OF_LEAK + j] += w[CARRY + j] * (w[V + j] - lost)


@helper
def pull_fired(w: Any, reset: Any, part: Any, learns: Any, one: Any) -> None:
    """Turn the gradient of the membrane after the step, in CARRY, into that of the membrane before, in U."""
    zero = one - one
    for j in range(BLOCK):
        w[S + j] = one if w[U + j] > w[LEVEL + j] else zero
        lost = part * (w[LEVEL + j] if reset == 0 else w[LEAK + j] * w[U + j] if reset == 1 else zero)
        w[ROOM + j] = w[G + j] - lost * w[CARRY + j]
    if learns:
        for j in range(BLOCK):
            kept = one - w[S + j] if reset == 1 else one
            w[OF_LEAK + j] += w[CARRY + j] * kept * w[U + j]
            change = -w[ROOM + j] * w[SLOPE + j] * w[U + j] * w[INVERSE + j]
            w[OF_LEVEL + j] += change - (w[CARRY + j] * w[S + j] if reset == 0 else zero)
    for j in range(BLOCK):
        kept = one - w[S + j] if reset == 1 else one
        w[CARRY + j] = w[CARRY + j] * w[LEAK + j] * kept + w[ROOM + j] * w[SLOPE + j]
