"""DeepFool on binary rasters: the way to the nearest decision boundary, looked for where the network really is."""

import torch
from torch import Tensor

from stalwart.attacks.losses import margin
from stalwart.attacks.oracle import Oracle
from stalwart.sets.base import expand

_LEAST = 1e-4
"""The smallest step, so that an iterate on the boundary moves on."""


def to_boundary(
    oracle: Oracle, x: Tensor, y: Tensor, samples: Tensor, steps: int, overshoot: float, classes: int
) -> tuple[Tensor, Tensor]:
    """Return the unit normal of a decision boundary near x and the way Σr that leads beyond it, both [B, ...].

    With f and its gradients at the rounded iterate, and for every other class k

        w_k = ∇f_k - ∇f_y,   d_k = |f_k - f_y| / ‖w_k‖,   r = max(d_k, 1e-4) w_k / ‖w_k‖ of the k with the least d_k

    the iterate itself is never rounded: X̃ <- X̃ + r, until f(x + (1 + overshoot) Σr) decides for another class k. The normal is
    that of ∇(f_k - f_y) at X̃; zero where no gradient leads anywhere.

    Source: Moosavi-Dezfooli et al., CVPR 2016 (arXiv 1511.04599), algorithm 2; rounding: Büchel et al. 2022 (arXiv 2110.02929).

    Args:
        oracle: the model.
        x: binary rasters [B, ...] that it decides rightly.
        y: labels [B].
        samples: which of the oracle's samples these are, [B].
        steps: at most so many r.
        overshoot: how far beyond Σr the decision is asked for.
        classes: how many other classes are looked at, the likeliest.
    """
    way, rival, alive = torch.zeros_like(x), y.clone(), torch.arange(len(x), device=x.device)
    for _ in range(steps):
        at = (x + way)[alive].clamp(0, 1).round()
        gap, slope, nearest = _linearise(oracle, at, y[alive], samples[alive], classes)
        moving = nearest >= 0  # the others have no gradient
        alive, gap, slope = alive[moving], gap[moving], slope[moving]
        rival[alive] = nearest[moving]
        if not len(alive):
            break
        length = slope.flatten(1).norm(dim=1)
        way[alive] += expand((gap / length).clamp_min(_LEAST) / length, slope) * slope
        beyond = x[alive] + (1 + overshoot) * way[alive]
        logits = oracle.logits(beyond, samples[alive], oracle.eot).mean(0)
        fooled = margin(logits, y[alive]) > 0
        rival[alive[fooled]] = logits.argmax(1)[fooled]
        alive = alive[~fooled]
        if not len(alive):
            break
    leaf, logits = oracle.trace(x + way, samples)
    gap = (logits.gather(1, rival[:, None]) - logits.gather(1, y[:, None]))[:, 0]
    normal = oracle.pull(gap, leaf, samples)
    length = normal.flatten(1).norm(dim=1)
    return normal / expand(torch.where(length > 0, length, 1.0), normal), way


def _linearise(oracle: Oracle, x: Tensor, y: Tensor, samples: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return |f_k - f_y| [B], w_k [B, ...] and k [B] of the class whose linearised boundary is nearest; k = -1 if none is."""
    leaf, logits = oracle.trace(x, samples)
    others = logits.detach().scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :-1]
    others = others[:, :classes]
    own = logits.gather(1, y[:, None])[:, 0]
    found, slope = torch.zeros_like(own), torch.zeros_like(x)
    least, nearest = torch.full_like(own, torch.inf).detach(), torch.full_like(y, -1)
    for place in range(others.shape[1]):
        gap = logits.gather(1, others[:, place : place + 1])[:, 0] - own
        w = oracle.pull(gap, leaf, samples, again=place + 1 < others.shape[1])
        size = gap.detach().abs()
        distance = size / w.flatten(1).norm(dim=1)  # infinite, or NaN at a tie, where there is no gradient
        nearer = distance < least
        least, nearest = torch.where(nearer, distance, least), torch.where(nearer, others[:, place], nearest)
        found, slope = torch.where(nearer, size, found), torch.where(nearer.reshape(-1, *[1] * (w.dim() - 1)), w, slope)
    return found.detach(), slope, nearest
