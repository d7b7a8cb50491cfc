"""Compiled loops of spiking neurons: all time steps of a block of neurons in one go; what a block does is in cells.py.

Memory is what a neuron costs: the forward pass reads currents and writes spikes; the backward pass reads currents again,
recomputes the membranes of one block, and writes the currents' gradient. Nothing but the currents is kept in between.

Currents are [T', R], R neurons of all samples, T' = 1 where they stay the same in every step; leaks and thresholds [N], those
of one sample, or [1] where all are the same. ``rule`` is 0 for integrate-first and 1 for fire-first neurons.

A block is one run of neurons. With 2 x 2 average pooling of what are images [H, W, C], channels last, it is two runs, one below
the other: spikes are averaged where they arise, and never written. Blocks of more than 128 channels are pieces of one pixel.
"""

from typing import Any

import numpy as np

from stalwart.core.jit import compiled, helper
from stalwart.core.jit_arguments import fetch_ahead, float32, float64, my_share
from stalwart.spiking.cells import (
    BLOCK,
    CARRY,
    INVERSE,
    LEAK,
    LEVEL,
    OF_LEAK,
    OF_LEVEL,
    SLOTS,
    SUM,
    G,
    S,
    U,
    V,
    X,
    fill,
    fire_first,
    integrate_first,
    of_leak,
    pull_fired,
    pull_integrated,
    slopes,
)


def blocks(samples: int, size: int, image: tuple[int, int, int]) -> int:
    """Return how many blocks there are: of ``size`` neurons a sample, pooled as images (H, W, C) unless C is 0."""
    height, width, channels = image
    if not channels:
        return samples * -(-size // BLOCK)
    run = min(channels, BLOCK // 4)
    return samples * (height // 2) * -(-(width // 2) // (BLOCK // (4 * run))) * -(-channels // run)


@helper
def _place(item: Any, size: Any, height: Any, width: Any, channels: Any) -> Any:
    """Return where a block begins, the length of a run, how many output pixels it has, and where its output begins."""
    if channels == 0:
        in_sample = (size + BLOCK - 1) // BLOCK
        first = (item % in_sample) * BLOCK
        begin = (item // in_sample) * size + first
        return begin, min(size - first, BLOCK), 0, begin
    run = min(channels, BLOCK // 4)
    parts, across = (channels + run - 1) // run, BLOCK // (4 * run)
    groups = (width // 2 + across - 1) // across
    part, rest = item % parts, item // parts
    column, rest = (rest % groups) * across, rest // groups
    row, sample = rest % (height // 2), rest // (height // 2)
    begin = sample * size + 2 * (row * width + column) * channels + part * run
    out = sample * (size // 4) + (row * (width // 2) + column) * channels + part * run
    return begin, min(run, channels - part * run), min(across, width // 2 - column), out


@helper
def _copy_in(w: Any, slot: Any, values: Any) -> None:
    for j in range(len(values)):
        w[slot + j] = values[j]


@helper
def _copy_out(target: Any, w: Any, slot: Any) -> None:
    for j in range(len(target)):
        target[j] = w[slot + j]


@helper
def _mean_out(target: Any, w: Any, left: Any, half: Any, one: Any) -> None:
    """Write the mean of two neighbours and of the two below them, ``half`` a block later."""
    n, quarter = len(target), one / 4
    for j in range(n):
        above, below = w[left + j] + w[left + n + j], w[left + half + j] + w[left + half + n + j]
        target[j] = (above + below) * quarter


@helper
def _load(w: Any, slot: Any, values: Any, begin: Any, length: Any, pixels: Any, width: Any, channels: Any) -> None:
    if pixels == 0:
        _copy_in(w, slot, values[begin : begin + length])
    else:
        half, below = 2 * pixels * length, begin + width * channels
        if length == channels:
            _copy_in(w, slot, values[begin : begin + half])
            _copy_in(w, slot + half, values[below : below + half])
        else:
            _copy_in(w, slot, values[begin : begin + length])
            _copy_in(w, slot + length, values[begin + channels : begin + channels + length])
            _copy_in(w, slot + half, values[below : below + length])
            _copy_in(w, slot + half + length, values[below + channels : below + channels + length])


@helper
def _store(target: Any, begin: Any, length: Any, pixels: Any, width: Any, channels: Any, w: Any, slot: Any) -> None:
    if pixels == 0:
        _copy_out(target[begin : begin + length], w, slot)
    else:
        half, below = 2 * pixels * length, begin + width * channels
        if length == channels:
            _copy_out(target[begin : begin + half], w, slot)
            _copy_out(target[below : below + half], w, slot + half)
        else:
            _copy_out(target[begin : begin + length], w, slot)
            _copy_out(target[begin + channels : begin + channels + length], w, slot + length)
            _copy_out(target[below : below + length], w, slot + half)
            _copy_out(target[below + channels : below + channels + length], w, slot + half + length)


@helper
def _store_spikes(target: Any, begin: Any, length: Any, pixels: Any, channels: Any, w: Any, one: Any) -> None:
    """Write spikes, or the means of four corners' spikes."""
    if pixels == 0:
        _copy_out(target[begin : begin + length], w, S)
    for q in range(pixels):
        to = begin + q * channels
        _mean_out(target[to : to + length], w, S + 2 * q * length, 2 * pixels * length, one)


@helper
def _load_gradient(w: Any, values: Any, begin: Any, length: Any, pixels: Any, channels: Any, one: Any) -> None:
    """Load the gradient of spikes, or a quarter of that of a mean to each of its corners."""
    if pixels == 0:
        _copy_in(w, G, values[begin : begin + length])
    half = 2 * pixels * length
    for q in range(pixels):
        at, slot = begin + q * channels, G + 2 * q * length
        _copy_in(w, slot, values[at : at + length])
        for j in range(length):
            quarter = w[slot + j] * (one / 4)
            w[slot + j] = quarter
            w[slot + length + j] = quarter
            w[slot + half + j] = quarter
            w[slot + half + length + j] = quarter


@helper
def _foresee(values: Any, begin: Any, length: Any, pixels: Any, width: Any, channels: Any) -> None:
    at, size = values.ctypes.data + begin * values.itemsize, values.itemsize
    if pixels == 0:
        fetch_ahead(at, length * size)
    else:
        fetch_ahead(at, (2 * pixels * channels) * size)
        fetch_ahead(at + width * channels * size, (2 * pixels * channels) * size)


@helper
def _prepare(w: Any, leak: Any, threshold: Any, one: Any) -> None:
    """Clear all slots, and write the leak and the threshold that all neurons share; or 0 and 1, for neurons that go along."""
    for slot in range(0, SLOTS, BLOCK):
        fill(w, slot, one - one)
    fill(w, LEAK, leak[0] if len(leak) == 1 else one - one)
    fill(w, LEVEL, threshold[0] if len(leak) == 1 else one)
    for j in range(BLOCK):
        w[INVERSE + j] = one / w[LEVEL + j]


@helper
def _begin(
    w: Any,
    leak: Any,
    threshold: Any,
    size: Any,
    begin: Any,
    length: Any,
    pixels: Any,
    width: Any,
    channels: Any,
    one: Any,
) -> None:
    """Start a block at membranes of 0, with leaks and thresholds of its own; where it is not full, others go along."""
    fill(w, V, one - one)
    if len(leak) > 1:
        _load(w, LEAK, leak, begin % size, length, pixels, width, channels)
        _load(w, LEVEL, threshold, begin % size, length, pixels, width, channels)
        for j in range(BLOCK):
            w[INVERSE + j] = one / w[LEVEL + j]


@helper
def _forward(
    x: Any,
    leak: Any,
    threshold: Any,
    out: Any,
    size: Any,
    height: Any,
    width: Any,
    channels: Any,
    rule: Any,
    reset: Any,
    one: Any,
    begin: Any,
    end: Any,
) -> None:
    w = np.empty(SLOTS, leak.dtype)
    _prepare(w, leak, threshold, one)
    for item in range(begin, end):
        first, length, pixels, place = _place(item, size, height, width, channels)
        _begin(w, leak, threshold, size, first, length, pixels, width, channels, one)
        for t in range(len(out)):
            if t == 0 or len(x) > 1:
                _load(w, X, x[t], first, length, pixels, width, channels)
            if t + 1 < len(x):
                _foresee(x[t + 1], first, length, pixels, width, channels)
            if rule == 0:
                integrate_first(w, reset, one)
            else:
                fire_first(w, reset, one)
                for j in range(BLOCK):
                    w[V + j] = w[U + j]
            _store_spikes(out[t], place, length, pixels, channels, w, one)


@compiled
def forward(words: Any) -> None:
    """Spikes, shared over blocks.

    Arguments: (wide, T', T, R, N, H, W, C, rule, reset, length of leaks, currents, leaks, thresholds, spikes [T, R], or
    [T, R / 4] where C > 0 asks for pooling).
    """
    begin, end = my_share(words)
    held, steps, all_neurons, size = words[4], words[5], words[6], words[7]
    height, width, channels, rule, reset, own = words[8], words[9], words[10], words[11], words[12], words[13]
    outputs = all_neurons if channels == 0 else all_neurons // 4
    if words[3]:
        x, leak = float64(words[14], (held, all_neurons)), float64(words[15], (own,))
        threshold, out = float64(words[16], (own,)), float64(words[17], (steps, outputs))
        _forward(x, leak, threshold, out, size, height, width, channels, rule, reset, np.float64(1), begin, end)
    else:
        y, decay = float32(words[14], (held, all_neurons)), float32(words[15], (own,))
        level, spikes = float32(words[16], (own,)), float32(words[17], (steps, outputs))
        _forward(y, decay, level, spikes, size, height, width, channels, rule, reset, np.float32(1), begin, end)


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
    size: Any,
    height: Any,
    width: Any,
    channels: Any,
    rule: Any,
    reset: Any,
    kind: Any,
    attached: Any,
    one: Any,
    begin: Any,
    end: Any,
) -> None:
    steps, learns = len(g), len(d_leak) > 0
    a, number, part = numbers[0], numbers[1], one if attached else one - one
    w, membranes = np.empty(SLOTS, leak.dtype), np.empty((steps, BLOCK), leak.dtype)
    bits = w.view(np.int32)
    _prepare(w, leak, threshold, one)
    for item in range(begin, end):
        first, length, pixels, place = _place(item, size, height, width, channels)
        _begin(w, leak, threshold, size, first, length, pixels, width, channels, one)
        fill(w, CARRY, one - one)
        fill(w, SUM, one - one)
        if learns:
            fill(w, OF_LEAK, one - one)
            fill(w, OF_LEVEL, one - one)
        # The membranes that decide on spikes: of integrate-first neurons the new ones, of fire-first neurons the old ones.
        for t in range(steps):
            if t == 0 or len(x) > 1:
                _load(w, X, x[t], first, length, pixels, width, channels)
            if t + 1 < len(x):
                _foresee(x[t + 1], first, length, pixels, width, channels)
            if rule == 0:
                integrate_first(w, reset, one)
                _copy_out(membranes[t], w, U)
            else:
                _copy_out(membranes[t], w, V)
                fire_first(w, reset, one)
                for j in range(BLOCK):
                    w[V + j] = w[U + j]
        for back in range(steps):
            t = steps - 1 - back
            _load_gradient(w, g[t], place, length, pixels, channels, one)
            _copy_in(w, U, membranes[t])
            if t > 0 and pixels == 0:
                _foresee(g[t - 1], first, length, pixels, width, channels)
            slopes(w, bits, kind, a, number, one)
            if rule == 0:
                pull_integrated(w, reset, part, learns, one)
            if len(out) == steps:
                _store(out[t], first, length, pixels, width, channels, w, CARRY)
            else:
                for j in range(BLOCK):
                    w[SUM + j] += w[CARRY + j]
            if rule == 1:
                pull_fired(w, reset, part, learns, one)
            else:
                if learns and t > 0:
                    _copy_in(w, V, membranes[t - 1])
                    of_leak(w, reset, one)
                for j in range(BLOCK):
                    w[CARRY + j] *= w[LEAK + j]
        if len(out) < steps:
            _store(out[0], first, length, pixels, width, channels, w, SUM)
        if learns:
            _store(d_leak, first, length, pixels, width, channels, w, OF_LEAK)
            _store(d_threshold, first, length, pixels, width, channels, w, OF_LEVEL)


@compiled
def backward(words: Any) -> None:
    """Gradients, shared over blocks.

    Arguments: (wide, T', T, R, N, H, W, C, rule, reset, kind, attached, learns, length of leaks, currents, leaks, thresholds,
    gradient of the output of ``forward``, out [T', R], those of leaks and thresholds [R] or [0], two numbers).
    """
    begin, end = my_share(words)
    held, steps, all_neurons, size = words[4], words[5], words[6], words[7]
    height, width, channels, rule, reset = words[8], words[9], words[10], words[11], words[12]
    kind, attached, own = words[13], words[14], words[16]
    learned = all_neurons if words[15] else 0
    outputs = all_neurons if channels == 0 else all_neurons // 4
    if words[3]:
        _backward(
            float64(words[17], (held, all_neurons)),
            float64(words[18], (own,)),
            float64(words[19], (own,)),
            float64(words[20], (steps, outputs)),
            float64(words[21], (held, all_neurons)),
            float64(words[22], (learned,)),
            float64(words[23], (learned,)),
            float64(words[24], (2,)),
            size,
            height,
            width,
            channels,
            rule,
            reset,
            kind,
            attached,
            np.float64(1),
            begin,
            end,
        )
    else:
        _backward(
            float32(words[17], (held, all_neurons)),
            float32(words[18], (own,)),
            float32(words[19], (own,)),
            float32(words[20], (steps, outputs)),
            float32(words[21], (held, all_neurons)),
            float32(words[22], (learned,)),
            float32(words[23], (learned,)),
            float32(words[24], (2,)),
            size,
            height,
            width,
            channels,
            rule,
            reset,
            kind,
            attached,
            np.float32(1),
            begin,
            end,
        )
