"""The dynamics of neurons in plain PyTorch, step by step, for any device, type and surrogate.

    integrate first:  u[t] = λ v[t-1] + x[t];  s[t] = 1[u[t] >= θ];  v[t] = u[t] - θ s[t]  (soft),  u[t] (1 - s[t])  (hard)
    fire first:       s[t] = 1[u[t-1] > θ];  u[t] = λ u[t-1] + x[t] - θ s[t]  (soft),  λ u[t-1] (1 - s[t]) + x[t]  (hard)

Without a reset v[t] = u[t]. Membranes start at 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RESETS = ("soft", "hard", "none")
ORDERS = ("integrate_first", "fire_first")


@dataclass(frozen=True)
class Dynamics:
    """What a neuron layer does beside its leak and its threshold.

    Attributes:
        reset: what a spike does to the membrane: subtracts θ, sets it to 0, or nothing.
        order: whether the membrane that decides a spike holds this step's current already.
        detach_reset: whether gradients ignore that spikes reset membranes.
    """

    reset: str = "soft"
    order: str = "integrate_first"
    detach_reset: bool = True


def run(x: Tensor, leak: Tensor, threshold: Tensor, how: Dynamics) -> tuple[Tensor, Tensor]:
    """Return the spikes [T, B, ...] and the membranes that decided them, [T, B, ...].

    Args:
        x: currents [T, B, ...].
        leak: λ, broadcasts against [B, ...].
        threshold: θ, broadcasts against [B, ...].
        how: reset and order.
    """
    spikes, membranes, _ = advance(x, leak, threshold, how)
    return spikes, membranes


def advance(x: Tensor, leak: Tensor, threshold: Tensor, how: Dynamics) -> tuple[Tensor, Tensor, Tensor]:
    """Return what :func:`run` does and the membranes [B, ...] that are kept after the last step."""
    first = how.order == "integrate_first"
    v = torch.zeros_like(x[0])
    spikes, membranes = [], []
    for current in x:
        u = leak * v + current if first else v
        s = (u >= threshold if first else u > threshold).to(x)
        membranes.append(u)
        spikes.append(s)
        v = _reset(u, s, threshold, how.reset) if first else _fired(u, s, current, leak, threshold, how.reset)
    return torch.stack(spikes), torch.stack(membranes), v


def _reset(u: Tensor, s: Tensor, threshold: Tensor, reset: str) -> Tensor:
    return u - threshold * s if reset == "soft" else torch.where(s > 0, 0.0, u) if reset == "hard" else u


def _fired(u: Tensor, s: Tensor, current: Tensor, leak: Tensor, threshold: Tensor, reset: str) -> Tensor:
    held = torch.where(s > 0, 0.0, u) if reset == "hard" else u
    following = leak * held + current
    return following - threshold * s if reset == "soft" else following


def pull(
    g: Tensor, slopes: Tensor, s: Tensor, u: Tensor, leak: Tensor, threshold: Tensor, how: Dynamics
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of currents, leak and threshold, each [T, B, ...] or [B, ...] before sums over broadcast axes.

    Args:
        g: the gradient of the spikes [T, B, ...].
        slopes: σ'(z) / θ of the membranes u [T, B, ...].
        s: the spikes.
        u: the membranes that decided them.
        leak, threshold, how: as in :func:`run`.
    """
    carried = torch.zeros_like(u[0])
    d_leak, d_threshold = torch.zeros_like(carried), torch.zeros_like(carried)
    part = 0.0 if how.detach_reset else 1.0
    currents = []
    for t in reversed(range(len(u))):
        of_threshold = -slopes[t] * u[t] / threshold  # ds/dθ
        kept = 1 - s[t] if how.reset == "hard" else 1.0
        if how.order == "integrate_first":
            lost = part * (threshold if how.reset == "soft" else u[t] if how.reset == "hard" else 0.0)
            d_threshold = d_threshold + g[t] * of_threshold - carried * lost * of_threshold
            if how.reset == "soft":
                d_threshold = d_threshold - carried * s[t]
            carried = g[t] * slopes[t] + carried * (kept - lost * slopes[t])
            currents.append(carried)
            if t:
                d_leak = d_leak + carried * _reset(u[t - 1], s[t - 1], threshold, how.reset)
            carried = leak * carried
        else:
            currents.append(carried)
            lost = part * (threshold if how.reset == "soft" else leak * u[t] if how.reset == "hard" else 0.0)
            of_spike = g[t] - lost * carried
            d_leak = d_leak + carried * kept * u[t]
            d_threshold = d_threshold + of_spike * of_threshold
            if how.reset == "soft":
                d_threshold = d_threshold - carried * s[t]
            carried = leak * carried * kept + of_spike * slopes[t]
    return torch.stack(currents[::-1]), d_leak, d_threshold
