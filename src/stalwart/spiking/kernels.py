"""Compiled loops of spiking neurons: all time steps of a block of neurons in one go, held in the first-level cache.

Memory is what a neuron costs: the forward pass reads currents and writes spikes; the backward pass reads currents again,
recomputes the membranes of one block, and writes the currents' gradient. Nothing but the currents is kept in between.

Currents are [T', B, N], T' = 1 where they stay the same in every step; leaks and thresholds [N], or [1] where all are
the same. ``rule`` is 0 for integrate-first and 1 for fire-first neurons, ``reset`` 0 soft, 1 hard, 2 none.

All a block works on lies in one array, in slots of fixed length at fixed places: only then does the compiler see that they do
not overlap, and uses vector instructions.
"""

import math
from typing import Any

import numpy as np

from stalwart.core.jit import compiled, helper
from stalwart.core.jit_arguments import fetch_ahead, float32, float64, my_share

BLOCK = 512
"""Neurons of a block."""

# Slots: current, gradient of the spikes, membrane, kept membrane, leak, threshold, what the gradient of the membrane carries
# to the step before, σ'(z) / θ, room for intermediate values, spikes, sums of gradients (of held currents, leak, threshold),
# and 1 / θ.
_X, _G, _U, _V, _LEAK, _LEVEL, _CARRY, _SLOPE, _ROOM, _S, _SUM, _OF_LEAK, _OF_LEVEL, _INVERSE = (
    BLOCK * k for k in range(14)
)
_SLOTS = 14 * BLOCK


@helper
def _load(w: Any, slot: Any, values: Any) -> None:
    for j in range(len(values)):
        w[slot + j] = values[j]


@helper
def _foresee(values: Any) -> None:
    fetch_ahead(values.ctypes.data, len(values) * values.itemsize)


@helper
def _store(target: Any, w: Any, slot: Any) -> None:
    for j in range(len(target)):
        target[j] = w[slot + j]


@helper
def _fill(w: Any, slot: Any, value: Any) -> None:
    for j in range(BLOCK):
        w[slot + j] = value


@helper
def _integrate_first(w: Any, reset: Any, one: Any) -> None:
    """From kept membrane and current: the new membrane, its spikes, and what is kept of it."""
    zero = one - one
    for j in range(BLOCK):
        u = w[_LEAK + j] * w[_V + j] + w[_X + j]
        w[_U + j] = u
        w[_S + j] = one if u >= w[_LEVEL + j] else zero
    if reset == 0:
        for j in range(BLOCK):
            w[_V + j] = w[_U + j] - w[_LEVEL + j] * w[_S + j]
    elif reset == 1:
        for j in range(BLOCK):
            w[_V + j] = w[_U + j] if w[_S + j] == zero else zero
    else:
        for j in range(BLOCK):
            w[_V + j] = w[_U + j]


@helper
def _fire_first(w: Any, reset: Any, one: Any) -> None:
    """From the membrane in V: its spikes, and the membrane after this step's current in U."""
    zero = one - one
    for j in range(BLOCK):
        w[_S + j] = one if w[_V + j] > w[_LEVEL + j] else zero
    if reset == 0:
        for j in range(BLOCK):
            w[_U + j] = (w[_LEAK + j] * w[_V + j] + w[_X + j]) - w[_LEVEL + j] * w[_S + j]
    elif reset == 1:
        for j in range(BLOCK):
            w[_U + j] = w[_LEAK + j] * (w[_V + j] if w[_S + j] == zero else zero) + w[_X + j]
    else:
        for j in range(BLOCK):
            w[_U + j] = w[_LEAK + j] * w[_V + j] + w[_X + j]


@helper
def _begin(w: Any, leak: Any, threshold: Any, first: Any, last: Any, one: Any) -> None:
    for slot in range(0, _SLOTS, BLOCK):
        _fill(w, slot, one - one)
    _fill(w, _LEVEL, one)
    if len(leak) == 1:
        _fill(w, _LEAK, leak[0])
        _fill(w, _LEVEL, threshold[0])
    else:
        _load(w, _LEAK, leak[first:last])
        _load(w, _LEVEL, threshold[first:last])
    for j in range(BLOCK):
        w[_INVERSE + j] = one / w[_LEVEL + j]


@helper
def _forward(
    x: Any, leak: Any, threshold: Any, out: Any, rule: Any, reset: Any, one: Any, begin: Any, end: Any
) -> None:
    steps, _, size = out.shape
    blocks = (size + BLOCK - 1) // BLOCK
    w = np.empty(_SLOTS, leak.dtype)
    for item in range(begin, end):
        b, first = item // blocks, (item % blocks) * BLOCK
        last = min(size, first + BLOCK)
        _begin(w, leak, threshold, first, last, one)
        for t in range(steps):
            if t == 0 or len(x) > 1:
                _load(w, _X, x[t, b, first:last])
            if t + 1 < len(x):
                _foresee(x[t + 1, b, first:last])
            if rule == 0:
                _integrate_first(w, reset, one)
            else:
                _fire_first(w, reset, one)
                _load(w, _V, w[_U : _U + BLOCK])
            _store(out[t, b, first:last], w, _S)


@compiled
def forward(words: Any) -> None:
    """Spikes, shared over blocks: (wide, T', T, B, N, rule, reset, length of leaks, currents, leaks, thresholds, spikes)."""
    begin, end = my_share(words)
    held, steps, batch, size = words[4], words[5], words[6], words[7]
    rule, reset, own = words[8], words[9], words[10]
    if words[3]:
        x, leak = float64(words[11], (held, batch, size)), float64(words[12], (own,))
        threshold, out = float64(words[13], (own,)), float64(words[14], (steps, batch, size))
        _forward(x, leak, threshold, out, rule, reset, np.float64(1), begin, end)
    else:
        y, decay = float32(words[11], (held, batch, size)), float32(words[12], (own,))
        level, spikes = float32(words[13], (own,)), float32(words[14], (steps, batch, size))
        _forward(y, decay, level, spikes, rule, reset, np.float32(1), begin, end)


@helper
def _exponentials(w: Any, bits: Any) -> None:
    """Write exp(ROOM), of numbers <= 0, to SLOPE: with vector instructions for 32 bits; the library takes one at a time."""
    if w.itemsize == 8:
        for j in range(BLOCK):
            w[_SLOPE + j] = math.exp(w[_ROOM + j])
        return
    for j in range(BLOCK):
        y = max(w[_ROOM + j], np.float32(-87.0)) * np.float32(1.44269504088896341)
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
        w[_ROOM + j] = p
        bits[_SLOPE + j] = (whole + np.int32(127)) << np.int32(23)
    for j in range(BLOCK):
        w[_SLOPE + j] *= w[_ROOM + j]


@helper
def _slopes(w: Any, bits: Any, at: Any, kind: Any, a: Any, b: Any, one: Any) -> None:
    """Write σ'(u / θ - 1) / θ of the membranes in slot ``at``, copied to U, to SLOPE."""
    zero = one - one
    if at != _U:
        for j in range(BLOCK):
            w[_U + j] = w[_V + j]
    for j in range(BLOCK):
        w[_ROOM + j] = abs(w[_U + j] * w[_INVERSE + j] - one)
    if kind == 0:
        for j in range(BLOCK):
            w[_SLOPE + j] = a * max(b - w[_ROOM + j], zero)
    elif kind == 1:
        for j in range(BLOCK):
            w[_ROOM + j] = -b * w[_ROOM + j]
        _exponentials(w, bits)
        for j in range(BLOCK):
            w[_SLOPE + j] *= a
    elif kind == 2:
        for j in range(BLOCK):
            w[_SLOPE + j] = a if w[_ROOM + j] < b else zero
    elif kind == 3:
        for j in range(BLOCK):
            z = b * w[_ROOM + j]
            w[_SLOPE + j] = a / (one + z * z)
    elif kind == 4:
        for j in range(BLOCK):
            z = one + b * w[_ROOM + j]
            w[_SLOPE + j] = a / (z * z)
    elif kind == 5:
        for j in range(BLOCK):
            w[_ROOM + j] = -b * w[_ROOM + j] * w[_ROOM + j]
        _exponentials(w, bits)
        for j in range(BLOCK):
            w[_SLOPE + j] *= a
    else:
        for j in range(BLOCK):
            w[_SLOPE + j] = a
    for j in range(BLOCK):
        w[_SLOPE + j] *= w[_INVERSE + j]


@helper
def _pull_integrated(w: Any, reset: Any, part: Any, learns: Any, one: Any) -> None:
    """Turn the gradient of what is kept, in CARRY, into that of the membrane in U. ``part`` is 1 where resets are attached."""
    zero = one - one
    if learns:
        for j in range(BLOCK):
            # ds/dθ = -σ' u / θ²; the kept membrane loses θ s, or u s.
            of_spike = -w[_SLOPE + j] * w[_U + j] * w[_INVERSE + j]
            spike = one if w[_U + j] >= w[_LEVEL + j] else zero
            lost = part * (w[_LEVEL + j] if reset == 0 else w[_U + j] if reset == 1 else zero)
            change = w[_G + j] * of_spike - w[_CARRY + j] * lost * of_spike
            w[_OF_LEVEL + j] += change - (w[_CARRY + j] * spike if reset == 0 else zero)
    if reset == 0:
        for j in range(BLOCK):
            stays = one - part * w[_LEVEL + j] * w[_SLOPE + j]
            w[_CARRY + j] = w[_G + j] * w[_SLOPE + j] + w[_CARRY + j] * stays
    elif reset == 1:
        for j in range(BLOCK):
            stays = (zero if w[_U + j] >= w[_LEVEL + j] else one) - part * w[_U + j] * w[_SLOPE + j]
            w[_CARRY + j] = w[_G + j] * w[_SLOPE + j] + w[_CARRY + j] * stays
    else:
        for j in range(BLOCK):
            w[_CARRY + j] = w[_G + j] * w[_SLOPE + j] + w[_CARRY + j]


@helper
def _pull_fired(w: Any, reset: Any, part: Any, learns: Any, one: Any) -> None:
    """Turn the gradient of the membrane after the step, in CARRY, into that of the membrane before, in U."""
    zero = one - one
    for j in range(BLOCK):
        w[_S + j] = one if w[_U + j] > w[_LEVEL + j] else zero
        lost = part * (w[_LEVEL + j] if reset == 0 else w[_LEAK + j] * w[_U + j] if reset == 1 else zero)
        w[_ROOM + j] = w[_G + j] - lost * w[_CARRY + j]
    if learns:
        for j in range(BLOCK):
            kept = one - w[_S + j] if reset == 1 else one
            w[_OF_LEAK + j] += w[_CARRY + j] * kept * w[_U + j]
            change = -w[_ROOM + j] * w[_SLOPE + j] * w[_U + j] * w[_INVERSE + j]
            w[_OF_LEVEL + j] += change - (w[_CARRY + j] * w[_S + j] if reset == 0 else zero)
    for j in range(BLOCK):
        kept = one - w[_S + j] if reset == 1 else one
        w[_CARRY + j] = w[_CARRY + j] * w[_LEAK + j] * kept + w[_ROOM + j] * w[_SLOPE + j]


@helper
def _backward(
    x: Any,
    leak: Any,
    threshold: Any,
    g: Any,
    out: Any,
    d_leak: Any,
    d_threshold: Any,
    numbers: Any,
    rule: Any,
    reset: Any,
    kind: Any,
    attached: Any,
    learns: Any,
    one: Any,
    begin: Any,
    end: Any,
) -> None:
    steps, _, size = g.shape
    blocks = (size + BLOCK - 1) // BLOCK
    a, number, part = numbers[0], numbers[1], one if attached else one - one
    w, started = np.empty(_SLOTS, leak.dtype), np.empty((steps, BLOCK), leak.dtype)
    bits = w.view(np.int32)
    for item in range(begin, end):
        b, first = item // blocks, (item % blocks) * BLOCK
        last = min(size, first + BLOCK)
        _begin(w, leak, threshold, first, last, one)
        # What step t starts from: the membrane kept after step t - 1, or for fire-first neurons that membrane itself.
        for t in range(steps):
            _store(started[t], w, _V)
            if t == 0 or len(x) > 1:
                _load(w, _X, x[t, b, first:last])
            if t + 1 < len(x):
                _foresee(x[t + 1, b, first:last])
            if rule == 0:
                _integrate_first(w, reset, one)
            else:
                _fire_first(w, reset, one)
                _load(w, _V, w[_U : _U + BLOCK])
        for back in range(steps):
            t = steps - 1 - back
            _load(w, _G, g[t, b, first:last])
            _load(w, _V, started[t])
            if len(x) > 1:
                _load(w, _X, x[t, b, first:last])
            if t > 0:
                _foresee(g[t - 1, b, first:last])
                if len(x) > 1:
                    _foresee(x[t - 1, b, first:last])
            if rule == 0:
                for j in range(BLOCK):
                    w[_U + j] = w[_LEAK + j] * w[_V + j] + w[_X + j]
                _slopes(w, bits, _U, kind, a, number, one)
                _pull_integrated(w, reset, part, learns, one)
            if len(out) == steps:
                _store(out[t, b, first:last], w, _CARRY)
            else:
                for j in range(BLOCK):
                    w[_SUM + j] += w[_CARRY + j]
            if rule == 0:
                if learns:
                    for j in range(BLOCK):
                        w[_OF_LEAK + j] += w[_CARRY + j] * w[_V + j]
                for j in range(BLOCK):
                    w[_CARRY + j] *= w[_LEAK + j]
            else:
                _slopes(w, bits, _V, kind, a, number, one)
                _pull_fired(w, reset, part, learns, one)
        if len(out) < steps:
            _store(out[0, b, first:last], w, _SUM)
        if learns:
            _store(d_leak[b, first:last], w, _OF_LEAK)
            _store(d_threshold[b, first:last], w, _OF_LEVEL)


@compiled
def backward(words: Any) -> None:
    """Gradients, shared over blocks of B.

    Arguments: (wide, T', T, B, N, rule, reset, kind, attached, learns, length of leaks, currents, leaks, thresholds, gradient
    [T, B, N], out [T', B, N], those of leaks and thresholds [B, N] or [0], two numbers).
    """
    begin, end = my_share(words)
    held, steps, batch, size = words[4], words[5], words[6], words[7]
    rule, reset, kind, attached, learns = words[8], words[9], words[10], words[11], words[12]
    own, rows = words[13], batch if learns else 0
    if words[3]:
        _backward(
            float64(words[14], (held, batch, size)),
            float64(words[15], (own,)),
            float64(words[16], (own,)),
            float64(words[17], (steps, batch, size)),
            float64(words[18], (held, batch, size)),
            float64(words[19], (rows, size)),
            float64(words[20], (rows, size)),
            float64(words[21], (2,)),
            rule,
            reset,
            kind,
            attached,
            learns,
            np.float64(1),
            begin,
            end,
        )
    else:
        _backward(
            float32(words[14], (held, batch, size)),
            float32(words[15], (own,)),
            float32(words[16], (own,)),
            float32(words[17], (steps, batch, size)),
            float32(words[18], (held, batch, size)),
            float32(words[19], (rows, size)),
            float32(words[20], (rows, size)),
            float32(words[21], (2,)),
            rule,
            reset,
            kind,
            attached,
            learns,
            np.float32(1),
            begin,
            end,
        )
