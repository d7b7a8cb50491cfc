"""Compiled loops of slope optimisation: one pass each over rows of coefficients, forward and backward, and over slopes.

Of R = B * S rows, S in turn belong to one sample. ``wide`` says whether floats have 64 bits.
"""

from typing import Any

from stalwart.core.jit import compiled, helper, summing
from stalwart.core.jit_arguments import float32, float64, my_share, uint8


@summing
def _pass_run(
    a: Any, s: Any, free: Any, lower: Any, low: Any, upper: Any, high: Any, at: Any, kink: Any, out: Any
) -> Any:
    """Write a⁺ lower + a⁻ upper, the lower slope s where free, and return Σ a⁺ low + a⁻ high."""
    total = a[0] * 0
    zero = total
    for j in range(len(a)):
        above, below = max(a[j], zero), min(a[j], zero)
        slope = s[j] if free[j] else lower[j]
        height = kink - at * s[j] if free[j] else low[j]
        total += above * height + below * high[j]
        out[j] = above * slope + below * upper[j]
    return total


@helper
def _pass(
    a: Any,
    s: Any,
    free: Any,
    lower: Any,
    low: Any,
    upper: Any,
    high: Any,
    ends: Any,
    out: Any,
    sums: Any,
    rows: Any,
    i: Any,
    k: Any,
) -> None:
    for r in range(i, k):
        b = r // rows
        sums[r] = _pass_run(a[r], s[r], free[b], lower[b], low[b], upper[b], high[b], ends[0], ends[1], out[r])


@helper
def _pull(
    a: Any,
    s: Any,
    free: Any,
    lower: Any,
    low: Any,
    upper: Any,
    high: Any,
    ends: Any,
    g: Any,
    c: Any,
    da: Any,
    ds: Any,
    rows: Any,
    i: Any,
    k: Any,
) -> None:
    at, kink = ends[0], ends[1]
    for r in range(i, k):
        b, one = r // rows, c[r]
        for j in range(a.shape[1]):
            if a[r, j] > 0:
                if free[b, j]:
                    da[r, j] = s[r, j] * g[r, j] + (kink - at * s[r, j]) * one
                    ds[r, j] = a[r, j] * (g[r, j] - at * one)
                else:
                    da[r, j] = lower[b, j] * g[r, j] + low[b, j] * one
                    ds[r, j] = 0
            else:
                da[r, j] = upper[b, j] * g[r, j] + high[b, j] * one
                ds[r, j] = 0


@helper
def _box_pull(a: Any, centre: Any, reach: Any, c: Any, da: Any, rows: Any, repeat: Any, i: Any, k: Any) -> None:
    for r in range(i, k):
        b, one = (r // rows) * repeat, c[r]
        for j in range(a.shape[1]):
            if a[r, j] > 0:
                da[r, j] = one * (centre[b, j] - reach[b, j])
            elif a[r, j] < 0:
                da[r, j] = one * (centre[b, j] + reach[b, j])
            else:
                da[r, j] = one * centre[b, j]


@summing
def _box_run(a: Any, centre: Any, reach: Any) -> Any:
    total = a[0] * 0
    for j in range(len(a)):
        total += a[j] * centre[j] - abs(a[j]) * reach[j]
    return total


@helper
def _box(a: Any, centre: Any, reach: Any, sums: Any, rows: Any, repeat: Any, i: Any, k: Any) -> None:
    for r in range(i, k):
        b = (r // rows) * repeat
        sums[r] = _box_run(a[r], centre[b], reach[b])


@helper
def _climb(value: Any, gradient: Any, mean: Any, square: Any, numbers: Any, i: Any, k: Any) -> None:
    rate, first, second, least, most = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    for j in range(i, k):
        g = gradient[j]
        m = mean[j] + (g - mean[j]) * 0.1
        v = square[j] * 0.999 + g * g * 0.001
        mean[j], square[j] = m, v
        moved = value[j] + rate * (m / first) / ((v / second) ** 0.5 + 1e-8)
        value[j] = min(max(moved, least), most)


@compiled
def pass_rows(words: Any) -> None:
    """(wide, S, B, n, a, s [R, n], free, lower, low, upper, high [B, n], ends [2] of 64 bits, out [R, n], sums [R])."""
    i, k = my_share(words)
    wide, rows, batch, n = words[3], words[4], words[5], words[6]
    R = rows * batch
    free, ends = uint8(words[9], (batch, n)), float64(words[14], (2,))
    if wide:
        _pass(
            float64(words[7], (R, n)), float64(words[8], (R, n)), free, float64(words[10], (batch, n)),
            float64(words[11], (batch, n)), float64(words[12], (batch, n)), float64(words[13], (batch, n)), ends,
            float64(words[15], (R, n)), float64(words[16], (R,)), rows, i, k,
        )  # fmt: skip
    else:
        _pass(
            float32(words[7], (R, n)), float32(words[8], (R, n)), free, float32(words[10], (batch, n)),
            float32(words[11], (batch, n)), float32(words[12], (batch, n)), float32(words[13], (batch, n)), ends,
            float32(words[15], (R, n)), float32(words[16], (R,)), rows, i, k,
        )  # fmt: skip


@compiled
def pull_rows(words: Any) -> None:
    """(wide, S, B, n, a, s, free, lower, low, upper, high, ends, g [R, n], c [R], da [R, n], ds [R, n]) as for pass_rows."""
    i, k = my_share(words)
    wide, rows, batch, n = words[3], words[4], words[5], words[6]
    R = rows * batch
    free, ends = uint8(words[9], (batch, n)), float64(words[14], (2,))
    if wide:
        _pull(
            float64(words[7], (R, n)), float64(words[8], (R, n)), free, float64(words[10], (batch, n)),
            float64(words[11], (batch, n)), float64(words[12], (batch, n)), float64(words[13], (batch, n)), ends,
            float64(words[15], (R, n)), float64(words[16], (R,)), float64(words[17], (R, n)), float64(words[18], (R, n)),
            rows, i, k,
        )  # fmt: skip
    else:
        _pull(
            float32(words[7], (R, n)), float32(words[8], (R, n)), free, float32(words[10], (batch, n)),
            float32(words[11], (batch, n)), float32(words[12], (batch, n)), float32(words[13], (batch, n)), ends,
            float32(words[15], (R, n)), float32(words[16], (R,)), float32(words[17], (R, n)), float32(words[18], (R, n)),
            rows, i, k,
        )  # fmt: skip


@compiled
def box(words: Any) -> None:
    """(wide, S, B, n, boxes, a [R, n], centre, reach [boxes, n], sums [R]); one box serves all samples, or one each."""
    i, k = my_share(words)
    wide, rows, batch, n, boxes = words[3], words[4], words[5], words[6], words[7]
    repeat = 1 if boxes > 1 else 0
    R = rows * batch
    if wide:
        a, centre = float64(words[8], (R, n)), float64(words[9], (boxes, n))
        _box(a, centre, float64(words[10], (boxes, n)), float64(words[11], (R,)), rows, repeat, i, k)
    else:
        b, middle = float32(words[8], (R, n)), float32(words[9], (boxes, n))
        _box(b, middle, float32(words[10], (boxes, n)), float32(words[11], (R,)), rows, repeat, i, k)


@compiled
def pull_box(words: Any) -> None:
    """(wide, S, B, n, boxes, a, centre, reach, c [R], da [R, n]) as for box."""
    i, k = my_share(words)
    wide, rows, batch, n, boxes = words[3], words[4], words[5], words[6], words[7]
    repeat = 1 if boxes > 1 else 0
    R = rows * batch
    if wide:
        a, centre = float64(words[8], (R, n)), float64(words[9], (boxes, n))
        reach, c = float64(words[10], (boxes, n)), float64(words[11], (R,))
        _box_pull(a, centre, reach, c, float64(words[12], (R, n)), rows, repeat, i, k)
    else:
        b, middle = float32(words[8], (R, n)), float32(words[9], (boxes, n))
        half, d = float32(words[10], (boxes, n)), float32(words[11], (R,))
        _box_pull(b, middle, half, d, float32(words[12], (R, n)), rows, repeat, i, k)


@compiled
def climb(words: Any) -> None:
    """Adam's step, clamped: (wide, n, value, gradient, mean, square [n], numbers [5] of 64 bits)."""
    i, k = my_share(words)
    wide, n = words[3], words[4]
    numbers = float64(words[9], (5,))
    if wide:
        _climb(
            float64(words[5], (n,)),
            float64(words[6], (n,)),
            float64(words[7], (n,)),
            float64(words[8], (n,)),
            numbers,
            i,
            k,
        )
    else:
        _climb(
            float32(words[5], (n,)),
            float32(words[6], (n,)),
            float32(words[7], (n,)),
            float32(words[8], (n,)),
            numbers,
            i,
            k,
        )
