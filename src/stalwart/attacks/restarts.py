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
    oracle: Oracle, loss: LossName, x: Tensor, y: Tensor, within: ThreatSet, runs: int, aims: int, climb: Climb
) -> Tensor:
    """Call ``climb`` up to ``runs`` times, each time on the samples that no earlier run broke.

    A targeted loss aims run r at the class that is (r mod ``aims``)-th most likely on the clean input, the true class left
    out, as MultiTargeted does (arXiv 1910.09338).

    Returns:
        the point [B, ...] of each sample that broke it or else has the largest margin loss.
    """
    order = _likely(oracle, x, y) if loss.startswith("targeted") else None
    found, alive = x.clone(), torch.arange(len(x), device=x.device)
    best = torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)
    for run in range(runs):
        goal = Goal(loss, y[alive], None if order is None else order[alive, run % aims])
        z, broken = climb(run, goal, x[alive], within.select(alive), alive)
        if runs == 1:
            return z
        value = _worth(oracle, z, goal, alive)
        better = (value > best[alive]) | broken
        at = alive[better]
        found[at], best[at] = z[better], value[better]
        alive = alive[~broken]
        if not len(alive):
            break
    return found


def _likely(oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
    """Return the wrong classes [B, K - 1] from the most likely down."""
    logits = oracle.logits(x, torch.arange(len(x), device=x.device))[0]
    return logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]


def _worth(oracle: Oracle, z: Tensor, goal: Goal, index: Tensor) -> Tensor:
    # Across runs the untargeted margin decides, whatever was climbed; fresh draws on a randomised model.
    draws = _SELECTION_DRAWS if oracle.randomised else 1
    return Goal("margin", goal.y)(oracle.logits(z, index, draws)).mean(0)
