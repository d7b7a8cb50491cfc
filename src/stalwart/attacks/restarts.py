"""Restarts and targets: an attack run again on the samples that are left, the worst point of each kept."""

from collections.abc import Callable

import torch
from torch import Tensor

from stalwart.attacks.losses import Goal, LossName
from stalwart.attacks.oracle import Oracle
from stalwart.sets import ThreatSet

_SELECTION_DRAWS = 20

Climb = Callable[[int, Goal, Tensor, ThreatSet, Tensor], tuple[Tensor, Tensor]]
"""(number of the run, goal, clean inputs, their threat set, which samples they are) -> (points, whether seen broken)."""


def worst_of_runs(
    oracle: Oracle,
    loss: LossName,
    x: Tensor,
    y: Tensor,
    within: ThreatSet,
    runs: int,
    aims: int,
    climb: Climb,
    together: int = 1,
) -> Tensor:
    """Call ``climb`` for ``runs`` runs a sample, each time on the samples that no earlier run broke.

    A targeted loss aims run r at the class that is (r mod ``aims``)-th most likely on the clean input, the true class left
    out, as MultiTargeted does (arXiv 1910.09338).

    Args:
        oracle: access to the model.
        loss: what is climbed.
        x: clean inputs [B, ...].
        y: labels [B].
        within: the threat set.
        runs: runs a sample, a multiple of ``together``.
        aims: how many classes a targeted loss aims at.
        climb: one run on rows that are samples, several rows a sample where runs go together.
        together: runs of a sample that one call of ``climb`` makes side by side, in larger batches.

    Returns:
        the point [B, ...] of each sample that broke it or else has the largest margin loss.
    """
    found, alive = x.clone(), torch.arange(len(x), device=x.device)
    order = likely_classes(oracle, x, y, alive) if loss.startswith("targeted") else None
    best = torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)
    for run in range(0, runs, together):
        for part in alive.split(max(1, oracle.rows // together) if together > 1 else len(alive)):
            rows = part.repeat_interleave(together)
            aim = None if order is None else order[part, run % aims : run % aims + together].flatten()
            goal = Goal(loss, y[rows], aim)
            z, broken = climb(run, goal, x[rows], within.select(rows), rows)
            if runs == 1:
                return z
            value = _worth(oracle, z, goal, rows)
            value = value.masked_fill(value.isnan(), -torch.inf).masked_fill(broken, torch.inf)
            top, place = value.view(-1, together).max(1)
            better = top > best[part]
            at = part[better]
            found[at] = z[(torch.arange(len(part), device=x.device) * together + place)[better]]
            best[at] = top[better]
        alive = alive[best[alive] < torch.inf]
        if not len(alive):
            break
    return found


def with_siblings(done: Tensor, samples: Tensor) -> Tensor:
    """Return which rows [R] belong to a sample that has a row with ``done`` [R]; ``samples`` [R] says whose the rows are."""
    return torch.isin(samples, samples[done])


def likely_classes(oracle: Oracle, x: Tensor, y: Tensor, samples: Tensor) -> Tensor:
    """Return the wrong classes [B, K - 1] from the most likely down; ``samples`` [B] are these of the oracle's batch."""
    logits = oracle.logits(x, samples)[0]
    return logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]


def _worth(oracle: Oracle, z: Tensor, goal: Goal, index: Tensor) -> Tensor:
    # Across runs the untargeted margin decides, whatever was climbed; fresh draws on a randomised model.
    draws = _SELECTION_DRAWS if oracle.randomised else 1
    return Goal("margin", goal.y)(oracle.logits(z, index, draws)).mean(0)
