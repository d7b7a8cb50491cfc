"""Compiled loops of ``ramps.py``. Rows are samples, [B, N]; a ramp without an end has no lengths."""

from typing import Any

import numpy as np

from stalwart.core.jit import compiled, helper
from stalwart.core.jit_arguments import float32, my_share

_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)


@helper
def _at(z: Any, end: Any, eta: Any) -> Any:
    kept = z if z > _ZERO else _ZERO
    kept = kept if kept < end else end
    return kept + eta * (z - kept)


@helper
def _slope(z: Any, end: Any, eta: Any) -> Any:
    inside = _ZERO if z > end else _ONE
    inside = inside if z > _ZERO else _ZERO
    return inside + eta * (_ONE - inside)


@helper
def _ramp(centre: Any, reach: Any, ends: Any, bounded: Any, eta: Any, middle: Any, half: Any) -> None:
    for n in range(len(centre)):
        end = ends[n] if bounded else np.float32(np.inf)
        low, high = _at(centre[n] - reach[n], end, eta), _at(centre[n] + reach[n], end, eta)
        middle[n], half[n] = _HALF * (low + high), _HALF * (high - low)


@compiled
def ramp(words: Any) -> None:
    """(B, N, bounded, centre, reach [B, N], ends [N or 1], eta [1], centre and reach of the activations [B, N])."""
    begin, end = my_share(words)
    shape, bounded = (words[3], words[4]), words[5] != 0
    centre, reach = float32(words[6], shape), float32(words[7], shape)
    ends, eta = float32(words[8], (words[4] if bounded else 1,)), float32(words[9], (1,))[0]
    middle, half = float32(words[10], shape), float32(words[11], shape)
    run = slice(begin, end)
    for b in range(words[3]):
        _ramp(centre[b, run], reach[b, run], ends[run] if bounded else ends, bounded, eta, middle[b, run], half[b, run])


@helper
def _back(
    centre: Any, reach: Any, ends: Any, bounded: Any, eta: Any, g: Any, h: Any, dc: Any, dr: Any, total: Any
) -> None:
    for n in range(len(centre)):
        end = ends[n] if bounded else np.float32(np.inf)
        low, high = centre[n] - reach[n], centre[n] + reach[n]
        below, above = _HALF * (g[n] - h[n]), _HALF * (g[n] + h[n])
        from_low, from_high = below * _slope(low, end, eta), above * _slope(high, end, eta)
        dc[n], dr[n] = from_high + from_low, from_high - from_low
        total[n] += (below if low > end else _ZERO) + (above if high > end else _ZERO)


@compiled
def ramp_backward(words: Any) -> None:
    """As ``ramp`` up to eta; then gradients: two given [B, N], those of centre and reach [B, N], of ends [N], 0 before."""
    begin, end = my_share(words)
    shape, bounded = (words[3], words[4]), words[5] != 0
    centre, reach = float32(words[6], shape), float32(words[7], shape)
    ends, eta = float32(words[8], (words[4] if bounded else 1,)), float32(words[9], (1,))[0]
    g, h = float32(words[10], shape), float32(words[11], shape)
    dc, dr, total = float32(words[12], shape), float32(words[13], shape), float32(words[14], (words[4],))
    run = slice(begin, end)
    for b in range(words[3]):
        own = ends[run] if bounded else ends
        _back(
            centre[b, run], reach[b, run], own, bounded, eta, g[b, run], h[b, run], dc[b, run], dr[b, run], total[run]
        )
    for n in range(begin, end):
        total[n] *= _ONE - eta
