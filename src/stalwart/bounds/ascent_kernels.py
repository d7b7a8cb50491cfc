"""Compiled loops of slope optimisation: one pass each over rows of coefficients, forward and backward, and over slopes.

Of R = B * S rows, S in turn belong to one sample. ``wide`` says whether floats have 64 bits.
"""

import math
from typing import Any

from stalwart.bounds.kernels import RUN, least
from stalwart.core.jit import compiled, helper, summing
from stalwart.core.jit_arguments import float32, float64, my_share, uint8


@summing
def _pass_run(
    a: Any, s: Any, free: Any, lower: Any, low: Any, upper: Any, high: Any, at: Any, kink: Any, out: Any
) -> Any:
    """Write a⁺ lower + a⁻ upper, the lower slope s where free, and return Σ a⁺ low + a⁻ high."""
    zero = a.dtype.type(0)
    total = zero
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
    size = a.shape[1]
    for r in range(i, k):
        b, total = r // rows, 0.0
        for begin in range(0, size, RUN):
            run = slice(begin, min(size, begin + RUN))
            total += _pass_run(
                a[r, run], s[r, run], free[b, run], lower[b, run], low[b, run], upper[b, run], high[b, run],
                ends[0], ends[1], out[r, run],
            )  # fmt: skip
        sums[r] = total


@helper
def _pull_run(
    a: Any,
    s: Any,
    free: Any,
    lower: Any,
    low: Any,
    upper: Any,
    high: Any,
    at: Any,
    kink: Any,
    g: Any,
    one: Any,
    da: Any,
) -> None:
    for j in range(len(a)):
        slope = s[j] if free[j] else lower[j]
        height = kink - at * s[j] if free[j] else low[j]
        da[j] = slope * g[j] + height * one if a[j] > 0 else upper[j] * g[j] + high[j] * one


@helper
def _slope_run(a: Any, free: Any, at: Any, g: Any, one: Any, ds: Any) -> None:
    zero = a.dtype.type(0)
    for j in range(len(a)):
        ds[j] = max(a[j], zero) * (g[j] - at * one) if free[j] else zero


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
    for r in range(i, k):
        b = r // rows
        _pull_run(
            a[r], s[r], free[b], lower[b], low[b], upper[b], high[b], ends[0], ends[1], g[r], c[r], da[r]
        )  # fmt: skip
        _slope_run(a[r], free[b], ends[0], g[r], c[r], ds[r])


@helper
def _box_pull_run(a: Any, centre: Any, reach: Any, one: Any, da: Any) -> None:
    zero = a.dtype.type(0)
    for j in range(len(a)):
        spread = reach[j] if a[j] > 0 else (-reach[j] if a[j] < 0 else zero)
        da[j] = one * (centre[j] - spread)


@helper
def _box_pull(a: Any, centre: Any, reach: Any, c: Any, da: Any, rows: Any, i: Any, k: Any) -> None:
    for r in range(i, k):
        _box_pull_run(a[r], centre[r // rows], reach[r // rows], c[r], da[r])


@helper
def _box(a: Any, centre: Any, reach: Any, sums: Any, rows: Any, i: Any, k: Any) -> None:
    for r in range(i, k):
        sums[r] = least(a[r], centre[r // rows], reach[r // rows])


@helper
def _climb(value: Any, gradient: Any, mean: Any, square: Any, numbers: Any, i: Any, k: Any) -> None:
    rate, scale, least, most, tiny = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    keep, rest, slow, fresh = numbers[5], numbers[6], numbers[7], numbers[8]
    for j in range(i, k):
        g = gradient[j]
        m = keep * mean[j] + rest * g
        v = slow * square[j] + fresh * g * g
        mean[j], square[j] = m, v
        value[j] = min(max(value[j] + rate * m / (math.sqrt(v) * scale + tiny), least), most)


@compiled
def pass_rows(words: Any) -> None:
    """(wide, S, B, n, a, s [R, n], free, lower, low, upper, high [B, n], ends [2], out [R, n], sums [R])."""
    i, k = my_share(words)
    wide, rows, batch, n = words[3], words[4], words[5], words[6]
    R = rows * batch
    free = uint8(words[9], (batch, n))
    if wide:
        _pass(
            float64(words[7], (R, n)), float64(words[8], (R, n)), free, float64(words[10], (batch, n)),
            float64(words[11], (batch, n)), float64(words[12], (batch, n)), float64(words[13], (batch, n)),
            float64(words[14], (2,)), float64(words[15], (R, n)), float64(words[16], (R,)), rows, i, k,
        )  # fmt: skip
    else:
        _pass(
            float32(words[7], (R, n)), float32(words[8], (R, n)), free, float32(words[10], (batch, n)),
            float32(words[11], (batch, n)), float32(words[12], (batch, n)), float32(words[13], (batch, n)),
            float32(words[14], (2,)), float32(words[15], (R, n)), float32(words[16], (R,)), rows, i, k,
        )  # fmt: skip


@compiled
def pull_rows(words: Any) -> None:
    """(wide, S, B, n, a, s, free, lower, low, upper, high, ends, g [R, n], c [R], da [R, n], ds [R, n]) as for pass_rows."""
    i, k = my_share(words)
    wide, rows, batch, n = words[3], words[4], words[5], words[6]
    R = rows * batch
    free = uint8(words[9], (batch, n))
    if wide:
        _pull(
            float64(words[7], (R, n)), float64(words[8], (R, n)), free, float64(words[10], (batch, n)),
            float64(words[11], (batch, n)), float64(words[12], (batch, n)), float64(words[13], (batch, n)),
            float64(words[14], (2,)), float64(words[15], (R, n)), float64(words[16], (R,)), float64(words[17], (R, n)),
            float64(words[18], (R, n)), rows, i, k,
        )  # fmt: skip
    else:
        _pull(
            float32(words[7], (R, n)), float32(words[8], (R, n)), free, float32(words[10], (batch, n)),
            float32(words[11], (batch, n)), float32(words[12], (batch, n)), float32(words[13], (batch, n)),
            float32(words[14], (2,)), float32(words[15], (R, n)), float32(words[16], (R,)), float32(words[17], (R, n)),
            float32(words[18], (R, n)), rows, i, k,
        )  # fmt: skip


@compiled
def box(words: Any) -> None:
    """(wide, S, B, n, a [R, n], centre, reach [B, n], sums [R])."""
    i, k = my_share(words)
    wide, rows, batch, n = words[3], words[4], words[5], words[6]
    R = rows * batch
    if wide:
        a, centre = float64(words[7], (R, n)), float64(words[8], (batch, n))
        _box(a, centre, float64(words[9], (batch, n)), float64(words[10], (R,)), rows, i, k)
    else:
        b, middle = float32(words[7], (R, n)), float32(words[8], (batch, n))
        _box(b, middle, float32(words[9], (batch, n)), float32(words[10], (R,)), rows, i, k)


@compiled
def pull_box(words: Any) -> None:
    """(wide, S, B, n, a, centre, reach, c [R], da [R, n]) as for box."""
    i, k = my_share(words)
    wide, rows, batch, n = words[3], words[4], words[5], words[6]
    R = rows * batch
    if wide:
        a, centre = float64(words[7], (R, n)), float64(words[8], (batch, n))
        reach, c = float64(words[9], (batch, n)), float64(words[10], (R,))
        _box_pull(a, centre, reach, c, float64(words[11], (R, n)), rows, i, k)
    else:
        b, middle = float32(words[7], (R, n)), float32(words[8], (batch, n))
        half, d = float32(words[9], (batch, n)), float32(words[10], (R,))
        _box_pull(b, middle, half, d, float32(words[11], (R, n)), rows, i, k)


@compiled
def climb(words: Any) -> None:
    """Adam's step, clamped: (wide, n, value, gradient, mean, square [n], numbers [9] of the same type).

    The numbers are the step size over the first moment's correction, the root of what the second moment is corrected by, the
    ends, the smallest divisor, and what the moments keep and take.
    """
    i, k = my_share(words)
    wide, n = words[3], words[4]
    if wide:
        values, gradients = float64(words[5], (n,)), float64(words[6], (n,))
        _climb(values, gradients, float64(words[7], (n,)), float64(words[8], (n,)), float64(words[9], (9,)), i, k)
    else:
        floats, slopes = float32(words[5], (n,)), float32(words[6], (n,))
        _climb(floats, slopes, float32(words[7], (n,)), float32(words[8], (n,)), float32(words[9], (9,)), i, k)
