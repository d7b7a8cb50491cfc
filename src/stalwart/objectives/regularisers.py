"""Shi's two regularisers for the time in which the radius grows: boxes that stay tight, ReLUs that stay balanced.

Source: Shi, Wang, Zhang, Yi, Hsieh, "Fast certified robust training with short warmup", NeurIPS 2021 (arXiv 2103.17268),
section 4.2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stalwart.bounds.interval import Interval


def tightness(layers: Sequence[Interval], lower: Tensor, upper: Tensor, tau: float) -> Tensor:
    """Return 1 / (τ N) Σ_i max(0, τ - δ₀ / δ_i), δ_i the mean half-width at the i-th of N activations.

    Args:
        layers: input intervals of the activations, [B, ...] each.
        lower, upper: ends [B, ...] of the network's input box, whose mean half-width is δ₀.
        tau: the tolerance.
    """
    first = (upper - lower).mean()
    # Written as products: a layer of width 0, of which nothing has to be asked, divides by nothing.
    widths = torch.stack([(layer.upper - layer.lower).mean() for layer in layers])
    wide = widths.clamp_min(torch.finfo(widths.dtype).tiny)
    return (tau - first / wide).clamp_min(0).sum() / (tau * len(layers))


def relu_balance(layers: Sequence[Interval], tau: float) -> Tensor:
    """Return 1 / (τ N) Σ_i [max(0, τ - ρ_μ) + max(0, τ - ρ_v)], how unlike active and inactive neurons are.

    With centres c, ρ_μ compares the mean of c over active neurons (l > 0) with that of -c over inactive ones (u < 0), and ρ_v
    the sums of (c - mean c)² over both; ρ = min / max is 1 where they are alike. A layer that has neither adds nothing.

    Args:
        layers: input intervals of the activations, [B, ...] each.
        tau: the tolerance.
    """
    terms = []
    for layer in layers:
        centre = (layer.upper + layer.lower) / 2
        spread = (centre - centre.mean()).square()
        active, inactive = (layer.lower > 0).to(centre), (layer.upper < 0).to(centre)
        terms.append(_unlike((centre * active).mean(), -(centre * inactive).mean(), tau))
        terms.append(_unlike((spread * active).sum(), (spread * inactive).sum(), tau))
    return torch.stack(terms).sum() / (tau * len(layers))


def _unlike(a: Tensor, b: Tensor, tau: float) -> Tensor:
    larger = torch.maximum(a, b)
    # Where both are 0 there is nothing to balance; the denominator only keeps the unused branch finite.
    found = (tau - torch.minimum(a, b) / torch.where(larger > 0, larger, 1.0)).clamp_min(0)
    return torch.where(larger > 0, found, 0.0)
