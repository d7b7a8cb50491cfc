"""Compiled loops of ``ramps.py``. Rows are samples, [B, N]; a ramp without an end has infinite lengths."""

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
def _given(words: Any) -> Any:
    """Return eta, centre and reach [B, N] and ends [N] from (B, N, eta [1], centre, reach, ends, ...)."""
    shape = (words[3], words[4])
    eta = float32(words[5], (1,))[0]
    return eta, float32(words[6], shape), float32(words[7], shape), float32(words[8], (words[4],))


@helper
def _ramp(centre: Any, reach: Any, ends: Any, eta: Any, middle: Any, half: Any) -> None:
    for n in range(len(centre)):
        low, high = _at(centre[n] - reach[n], ends[n], eta), _at(centre[n] + reach[n], ends[n], eta)
        middle[n], half[n] = _HALF * (low + high), _HALF * (high - low)


@compiled
def ramp(words: Any) -> None:
    """(B, N, eta [1], centre, reach [B, N], ends [N], centre and reach of the activations [B, N])."""
    begin, end = my_share(words)
    shape, run = (words[3], words[4]), slice(begin, end)
    eta, centre, reach, ends = _given(words)
    middle, half = float32(words[9], shape), float32(words[10], shape)
    for b in range(words[3]):
        _ramp(centre[b, run], reach[b, run], ends[run], eta, middle[b, run], half[b, run])


@helper
def _back(centre: Any, reach: Any, ends: Any, eta: Any, g: Any, h: Any, dc: Any, dr: Any, total: Any) -> None:
    for n in range(len(centre)):
        end = ends[n]
        low, high = centre[n] - reach[n], centre[n] + reach[n]
        below, above = _HALF * (g[n] - h[n]), _HALF * (g[n] + h[n])
        from_low, from_high = below * _slope(low, end, eta), above * _slope(high, end, eta)
        dc[n], dr[n] = from_high + from_low, from_high - from_low
        total[n] += (below if low > end else _ZERO) + (above if high > end else _ZERO)


@compiled
def ramp_backward(words: Any) -> None:
    """As ``ramp`` up to ends; then gradients: two given [B, N], those of centre and reach [B, N], of ends [N], 0 before."""
    begin, end = my_share(words)
    shape, run = (words[3], words[4]), slice(begin, end)
    eta, centre, reach, ends = _given(words)
    g, h = float32(words[9], shape), float32(words[10], shape)
    dc, dr, total = float32(words[11], shape), float32(words[12], shape), float32(words[13], (words[4],))
    for b in range(words[3]):
        _back(centre[b, run], reach[b, run], ends[run], eta, g[b, run], h[b, run], dc[b, run], dr[b, run], total[run])
    for n in range(begin, end):
        total[n] *= _ONE - eta
