"""Compiled loops behind ParamRamp (see ``param_ramp.py``): one pass over memory each way. Rows are samples, [B, N]."""

from typing import Any

import numpy as np

from stalwart.core.jit import compiled, helper
from stalwart.core.jit_arguments import float32, my_share

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@helper
def _ramp(z: Any, r: Any, eta: Any, out: Any) -> None:
    for n in range(len(z)):
        value = z[n]
        kept = value if value > _ZERO else _ZERO
        kept = kept if kept < r[n] else r[n]
        out[n] = kept + eta * (value - kept)


@compiled
def ramp(words: Any) -> None:
    """Activations of z: (B, z, r, eta, out), z and out [B, N], r [N], eta [1]; the shared axis is N. NaN stays NaN."""
    begin, end = my_share(words)
    z, r = float32(words[4], (words[3], words[2])), float32(words[5], (words[2],))
    eta, out = float32(words[6], (1,))[0], float32(words[7], (words[3], words[2]))
    for b in range(words[3]):
        _ramp(z[b, begin:end], r[begin:end], eta, out[b, begin:end])


@helper
def _back(z: Any, r: Any, eta: Any, gradient: Any, out: Any, total: Any) -> None:
    for n in range(len(z)):
        value, own = z[n], gradient[n]
        inside = _ZERO if value > r[n] else own
        inside = inside if value > _ZERO else _ZERO
        out[n] = inside + eta * (own - inside)
        total[n] += own if value > r[n] else _ZERO


@compiled
def ramp_backward(words: Any) -> None:
    """Gradients: (B, z, r, eta, gradient, out, total), out [B, N] that of z; total [N], zero before, that of r."""
    begin, end = my_share(words)
    z, r = float32(words[4], (words[3], words[2])), float32(words[5], (words[2],))
    eta, gradient = float32(words[6], (1,))[0], float32(words[7], (words[3], words[2]))
    out, total = float32(words[8], (words[3], words[2])), float32(words[9], (words[2],))
    for b in range(words[3]):
        _back(z[b, begin:end], r[begin:end], eta, gradient[b, begin:end], out[b, begin:end], total[begin:end])
    for n in range(begin, end):
        total[n] *= _ONE - eta
