"""Other gradients of the same spikes, for attacks: which one works best on a network is not known beforehand.

The forward pass stays that of the deployed network, bit for bit. x̄ is a neuron's mean current over time, r̄ its firing rate.
"""

import torch
from torch import Tensor

BACKWARDS = ("bptt", "bptr", "rga", "cba", "hart")
"""How gradients pass neurons.

- "bptt": through time, with the surrogate.
- "bptr": straight through every step where the neuron fired at all (Ding et al., NeurIPS 2022).
- "rga": through the rate as a function of the mean current, of slope 0.2 on [0, 1 - λ), (1 - 0.2 (1 - λ)) / (1 + λ) on
  [1 - λ, 2], 0 elsewhere, in units of the threshold (Bu et al., CVPR 2023).
- "cba": as through a ReLU of the mean current, as in the network it was converted from (Bu et al., CVPR 2023; theirs runs that
  network, this one keeps the spiking network's own currents).
- "hart": with the gradient averaged over time and no recurrence (Hao et al., ICLR 2024).
"""


def mode_gradient(
    mode: str, g: Tensor, x: Tensor, slopes: Tensor, spikes: Tensor, leak: Tensor, threshold: Tensor
) -> Tensor:
    """Return the gradient of the currents [T, B, ...].

    Args:
        mode: any but "bptt".
        g: the gradient of the spikes [T, B, ...].
        x: the currents.
        slopes: σ'(z) / θ.
        spikes: s.
        leak, threshold: broadcast against [B, ...].
    """
    if mode == "bptr":
        return g * (spikes.amax(0) > 0).to(g) / threshold
    if mode == "hart":
        return g.mean(0) * slopes
    mean = x.mean(0) / threshold
    if mode == "cba":
        slope = (mean > 0).to(g)
    else:
        rest = 1 - leak
        low, high = torch.full_like(mean, 0.2), (1 - 0.2 * rest) / (1 + leak) * torch.ones_like(mean)
        slope = torch.where(mean < rest, low, high) * ((mean >= 0) & (mean <= 2))
    # r̄ = φ(x̄), and every step's current is a T-th of the mean.
    return (g.mean(0) * slope / threshold).expand_as(x)
