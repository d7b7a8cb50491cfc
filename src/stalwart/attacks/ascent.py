"""The loop that every gradient attack shares: projected steepest ascent that keeps its best iterate."""

import torch
from torch import Tensor

from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.sets import ThreatSet
from stalwart.sets.base import expand

TRUSTED_DRAWS = 10
"""Draws behind a loss from which the best iterate of a randomised model is known."""


def ascend(
    oracle: Oracle,
    goal: Goal,
    x: Tensor,
    start: Tensor,
    within: ThreatSet,
    steps: int,
    step: Tensor | float,
    samples: Tensor,
) -> tuple[Tensor, Tensor]:
    """Climb ``goal`` from ``start`` for ``steps`` steps of size ``step`` (a number, or one per sample [B]).

    ``samples`` [B] says which samples of the oracle's batch these are, so that costs stay with them.

    On a deterministic target a sample leaves the batch as soon as it is misclassified, and the others return their iterate
    of highest loss. On the source of a transfer nothing leaves, so that samples go well beyond its decision boundary. On
    a randomised model nothing leaves either, since one lucky draw proves nothing: the best iterate is kept if its loss
    was averaged over at least 10 draws, and the last one otherwise.

    Returns:
        the iterates [B, ...] and whether each was seen misclassified by a decisive oracle, [B] bool.
    """
    x, z = oracle.arrange(x), oracle.arrange(start.detach())
    found, broken = z.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    best = torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)
    index = torch.arange(len(x), device=x.device)
    keep_best = not oracle.randomised or oracle.eot >= TRUSTED_DRAWS
    width = torch.as_tensor(step, dtype=x.dtype, device=x.device).expand(len(x))
    for k in range(steps + 1):
        last = k == steps
        if last:
            if oracle.randomised and not keep_best:
                found[index] = z
                break
            logits = oracle.logits(z, samples[index], oracle.eot)
            value, logits = oracle.averaged(logits, goal), logits[-1]
        else:
            value, logits, gradient = oracle.gradient(z, goal, samples[index])
        wrong = goal.broken(logits) if oracle.decisive else torch.zeros_like(index, dtype=torch.bool)
        better = (value > best[index]) | wrong
        if better.any():
            at = index[better]
            found[at], best[at] = z[better], value[better]
        if last:
            broken[index[wrong]] = True
            break
        z = within.project(x, z + expand(width, z) * within.uphill(z, gradient))
        if wrong.any():
            broken[index[wrong]] = True
            alive = (~wrong).nonzero()[:, 0]
            if not len(alive):
                break
            index, x, z, width = index[alive], x[alive], z[alive], width[alive]
            goal, within = goal.select(alive), within.select(alive)
    return found, broken
