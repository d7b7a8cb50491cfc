"""Voltage-dependent synaptic plasticity: unsupervised learning from the membranes of the neurons before a synapse."""

import torch
from torch import Tensor

from stalwart.core.errors import InputError
from stalwart.core.numbers import Number, require


def vdsp(weights: Tensor, membranes: Tensor, fired: Tensor, rate: Number = 6e-5, alpha: Number = 2.0) -> Tensor:
    """Return weights after one time step; only synapses of neurons that fired change.

        v < 0 (it has just fired):  Δw = +η (e^-v - 1) (1 - w) e^(-α w)
        v > 0:                      Δw = -η (e^v - 1) w e^(α (w - 1))

    Args:
        weights: [N, M] in [0, 1], from M neurons to N.
        membranes: v of the M neurons, [M], 0 at rest and negative after a spike.
        fired: which of the N neurons fire in this step, [N] booleans.
        rate: η, positive.
        alpha: how much less strong weights gain and weak ones lose, at least 0.

    Raises:
        InputError: shapes that do not fit, or weights out of range.
        UsageError: a number out of range.

    Source: Garg et al., "Voltage-dependent synaptic plasticity", Frontiers in Neuroscience 2022.
    """
    require(rate > 0 and alpha >= 0, f"rate must be positive and alpha at least 0, got {rate} and {alpha}.")
    if weights.dim() != 2 or membranes.shape != weights.shape[1:] or fired.shape != weights.shape[:1]:
        raise InputError(
            f"weights [N, M] need membranes [M] and fired [N], got {list(weights.shape)}, {list(membranes.shape)} and "
            f"{list(fired.shape)}."
        )
    if not ((weights >= 0) & (weights <= 1)).all():
        raise InputError("weights of voltage-dependent plasticity lie in [0, 1]; clip or rescale them.")
    growth = ((-membranes).exp() - 1).clamp_min(0) * (1 - weights) * (-alpha * weights).exp()
    decay = (membranes.exp() - 1).clamp_min(0) * weights * (alpha * (weights - 1)).exp()
    changed = (weights + rate * (growth - decay)).clamp(0, 1)
    return torch.where(fired.bool().unsqueeze(1), changed, weights)
