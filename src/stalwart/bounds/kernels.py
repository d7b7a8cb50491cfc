"""Compiled loops of the backward walk, each one pass over the coefficients.

Rows are numbered over the batch: of R = B * S rows, S in turn belong to one sample. Patches are [R, h, w, C] with the place
of their first entry in the image, which may lie outside; entries outside are zero and stay so. Loops see the entries of a line
of an image or patch as one axis. ``wide`` says whether floats have 64 bits.
"""

from typing import Any

from stalwart.core.jit import compiled, helper, summing
from stalwart.core.jit_arguments import float32, float64, int64, my_share

RUN = 1024
"""Entries that are summed in the floats they have; sums of such sums have 64 bits."""


@summing
def _relax_run(a: Any, lower: Any, low: Any, upper: Any, high: Any) -> Any:
    """Replace a by a⁺ lower + a⁻ upper and return Σ a⁺ low + a⁻ high."""
    zero = a.dtype.type(0)
    total = zero
    for j in range(len(a)):
        above, below = max(a[j], zero), min(a[j], zero)
        total += above * low[j] + below * high[j]
        a[j] = above * lower[j] + below * upper[j]
    return total


@summing
def _relax_taken_run(a: Any, sign: Any, lower: Any, low: Any, upper: Any, high: Any, out: Any) -> Any:
    """Write what _relax_run makes of sign * a to ``out`` and return the same sum."""
    zero = a.dtype.type(0)
    total = zero
    for j in range(len(a)):
        entry = sign * a[j]
        above, below = max(entry, zero), min(entry, zero)
        total += above * low[j] + below * high[j]
        out[j] = above * lower[j] + below * upper[j]
    return total


@summing
def _minimum_run(a: Any, centre: Any, reach: Any) -> Any:
    total = a.dtype.type(0)
    for j in range(len(a)):
        total += a[j] * centre[j] - abs(a[j]) * reach[j]
    return total


@helper
def least(a: Any, centre: Any, reach: Any) -> Any:
    """Return Σ a centre - |a| reach."""
    total = 0.0
    for j in range(0, len(a), RUN):
        total += _minimum_run(a[j : j + RUN], centre[j : j + RUN], reach[j : j + RUN])
    return total


@helper
def _relax(a: Any, lower: Any, low: Any, upper: Any, high: Any, out: Any, rows: Any, begin: Any, end: Any) -> None:
    size = a.shape[1]
    for r in range(begin, end):
        b = r // rows
        for j in range(0, size, RUN):
            run = slice(j, min(size, j + RUN))
            out[r] += _relax_run(a[r, run], lower[b, run], low[b, run], upper[b, run], high[b, run])


@compiled
def relax(words: Any) -> None:
    """Pass a function's lines: (wide, S, B, n, a [R, n], four of [B, n], constants [R] of 64 bits)."""
    begin, end = my_share(words)
    wide, rows, batch, size = words[3], words[4], words[5], words[6]
    out = float64(words[12], (batch * rows,))
    if wide:
        _relax(
            float64(words[7], (batch * rows, size)),
            float64(words[8], (batch, size)),
            float64(words[9], (batch, size)),
            float64(words[10], (batch, size)),
            float64(words[11], (batch, size)),
            out,
            rows,
            begin,
            end,
        )
    else:
        _relax(
            float32(words[7], (batch * rows, size)),
            float32(words[8], (batch, size)),
            float32(words[9], (batch, size)),
            float32(words[10], (batch, size)),
            float32(words[11], (batch, size)),
            out,
            rows,
            begin,
            end,
        )


@helper
def _relax_taken(
    matrix: Any, places: Any, signs: Any, lower: Any, low: Any, upper: Any, high: Any, a: Any, out: Any, rows: Any,
    begin: Any, end: Any,
) -> None:  # fmt: skip
    size = a.shape[1]
    for r in range(begin, end):
        b, place, sign = r // rows, places[r], signs[r % rows]
        for j in range(0, size, RUN):
            run = slice(j, min(size, j + RUN))
            out[r] += _relax_taken_run(
                matrix[place, run], sign, lower[b, run], low[b, run], upper[b, run], high[b, run], a[r, run]
            )


@compiled
def relax_taken(words: Any) -> None:
    """Pass lines: (wide, S, B, K, n, matrix [K, n], places [R], signs [S], four of [B, n], out [R, n], constants [R])."""
    begin, end = my_share(words)
    wide, rows, batch, count, size = words[3], words[4], words[5], words[6], words[7]
    places, out = int64(words[9], (batch * rows,)), float64(words[16], (batch * rows,))
    if wide:
        _relax_taken(
            float64(words[8], (count, size)),
            places,
            float64(words[10], (rows,)),
            float64(words[11], (batch, size)),
            float64(words[12], (batch, size)),
            float64(words[13], (batch, size)),
            float64(words[14], (batch, size)),
            float64(words[15], (batch * rows, size)),
            out,
            rows,
            begin,
            end,
        )
    else:
        _relax_taken(
            float32(words[8], (count, size)),
            places,
            float32(words[10], (rows,)),
            float32(words[11], (batch, size)),
            float32(words[12], (batch, size)),
            float32(words[13], (batch, size)),
            float32(words[14], (batch, size)),
            float32(words[15], (batch * rows, size)),
            out,
            rows,
            begin,
            end,
        )


@helper
def _minimum(a: Any, centre: Any, reach: Any, out: Any, rows: Any, begin: Any, end: Any) -> None:
    for r in range(begin, end):
        out[r] += least(a[r], centre[r // rows], reach[r // rows])


@compiled
def minimum(words: Any) -> None:
    """Minimise over a box: (wide, S, B, n, a [R, n], centre [B, n], reach [B, n], constants [R] of 64 bits)."""
    begin, end = my_share(words)
    wide, rows, batch, size = words[3], words[4], words[5], words[6]
    out = float64(words[10], (batch * rows,))
    if wide:
        a = float64(words[7], (batch * rows, size))
        _minimum(a, float64(words[8], (batch, size)), float64(words[9], (batch, size)), out, rows, begin, end)
    else:
        b = float32(words[7], (batch * rows, size))
        _minimum(b, float32(words[8], (batch, size)), float32(words[9], (batch, size)), out, rows, begin, end)


@helper
def _span(place: Any, length: Any, size: Any) -> Any:
    """Return which of ``length`` entries from ``place`` on lie inside [0, size)."""
    return max(0, -place), max(max(0, -place), min(length, size - place))


@helper
def _relax_patches(
    a: Any, places: Any, lower: Any, low: Any, upper: Any, high: Any, out: Any, rows: Any, channels: Any, begin: Any,
    end: Any,
) -> None:  # fmt: skip
    tall, wide = a.shape[1], a.shape[2] // channels
    height, width = lower.shape[1], lower.shape[2] // channels
    for r in range(begin, end):
        b, top, left = r // rows, places[r, 0], places[r, 1]
        first, last = _span(top, tall, height)
        begin_x, end_x = _span(left, wide, width)
        if begin_x == end_x:
            continue
        total = 0.0
        for i in range(first, last):
            y, run = top + i, slice((left + begin_x) * channels, (left + end_x) * channels)
            line = a[r, i, begin_x * channels : end_x * channels]
            total += _relax_run(line, lower[b, y, run], low[b, y, run], upper[b, y, run], high[b, y, run])
        out[r] += total


@compiled
def relax_patches(words: Any) -> None:
    """Pass lines: (wide, S, B, h, w, C, H, W, a [R, h, w, C], places [R, 2], four of [B, H, W, C], constants [R])."""
    begin, end = my_share(words)
    wide, rows, batch = words[3], words[4], words[5]
    patch = (batch * rows, words[6], words[7] * words[8])
    image = (batch, words[9], words[10] * words[8])
    places, out = int64(words[12], (batch * rows, 2)), float64(words[17], (batch * rows,))
    if wide:
        _relax_patches(
            float64(words[11], patch),
            places,
            float64(words[13], image),
            float64(words[14], image),
            float64(words[15], image),
            float64(words[16], image),
            out,
            rows,
            words[8],
            begin,
            end,
        )
    else:
        _relax_patches(
            float32(words[11], patch),
            places,
            float32(words[13], image),
            float32(words[14], image),
            float32(words[15], image),
            float32(words[16], image),
            out,
            rows,
            words[8],
            begin,
            end,
        )


@helper
def _minimum_patches(
    a: Any, places: Any, centre: Any, reach: Any, out: Any, rows: Any, channels: Any, begin: Any, end: Any
) -> None:
    tall, wide = a.shape[1], a.shape[2] // channels
    height, width = centre.shape[1], centre.shape[2] // channels
    for r in range(begin, end):
        b, top, left = r // rows, places[r, 0], places[r, 1]
        first, last = _span(top, tall, height)
        begin_x, end_x = _span(left, wide, width)
        if begin_x == end_x:
            continue
        total = 0.0
        for i in range(first, last):
            y, run = top + i, slice((left + begin_x) * channels, (left + end_x) * channels)
            total += _minimum_run(a[r, i, begin_x * channels : end_x * channels], centre[b, y, run], reach[b, y, run])
        out[r] += total


@compiled
def minimum_patches(words: Any) -> None:
    """Minimise over a box: (wide, S, B, h, w, C, H, W, a, places [R, 2], centre, reach [B, H, W, C], constants [R])."""
    begin, end = my_share(words)
    wide, rows, batch = words[3], words[4], words[5]
    patch = (batch * rows, words[6], words[7] * words[8])
    image = (batch, words[9], words[10] * words[8])
    places, out = int64(words[12], (batch * rows, 2)), float64(words[15], (batch * rows,))
    if wide:
        _minimum_patches(
            float64(words[11], patch),
            places,
            float64(words[13], image),
            float64(words[14], image),
            out,
            rows,
            words[8],
            begin,
            end,
        )
    else:
        _minimum_patches(
            float32(words[11], patch),
            places,
            float32(words[13], image),
            float32(words[14], image),
            out,
            rows,
            words[8],
            begin,
            end,
        )


@helper
def _clip(a: Any, places: Any, height: Any, width: Any, begin: Any, end: Any) -> None:
    _, tall, wide, _ = a.shape
    for r in range(begin, end):
        first, last = _span(places[r, 0], tall, height)
        begin_x, end_x = _span(places[r, 1], wide, width)
        for i in range(tall):
            if i < first or i >= last:
                a[r, i] = 0
            else:
                a[r, i, :begin_x] = 0
                a[r, i, end_x:] = 0


@compiled
def clip(words: Any) -> None:
    """Write zeros outside the image: (wide, R, h, w, C, H, W, a [R, h, w, C], places [R, 2])."""
    begin, end = my_share(words)
    patch = (words[4], words[5], words[6], words[7])
    places = int64(words[11], (words[4], 2))
    if words[3]:
        _clip(float64(words[10], patch), places, words[8], words[9], begin, end)
    else:
        _clip(float32(words[10], patch), places, words[8], words[9], begin, end)
