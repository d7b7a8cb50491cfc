"""Auto-PGD in an l1 ball: sparse steps whose number of coordinates and size follow from the iterates."""

import math

import torch
from torch import Tensor

from stalwart.attacks.ascent import TRUSTED_DRAWS
from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.attacks.restarts import with_siblings
from stalwart.core.random import normal
from stalwart.sets import ThreatSet
from stalwart.sets.base import expand, radii

_FIRST_SHARE = 0.2
_EVERY = 0.04
_FALL = 0.95
_FACTOR = 1.5
_LEAST = 0.1
_NOTHING = 1e-6
_STAGES = ((3, 0.3), (2, 0.3), (1, 0.4))


def climb_l1(
    oracle: Oracle,
    goal: Goal,
    x: Tensor,
    within: ThreatSet,
    steps: int,
    samples: Tensor,
    source: torch.Generator,
    larger_radii: bool,
) -> tuple[Tensor, Tensor]:
    """Climb ``goal`` from a normal start drawn back to the ball, in balls of 3 and 2 eps first if ``larger_radii``.

    Of the steps 30 %, 30 % and 40 % go to 3 eps, 2 eps and eps; each ball's climb starts from the best point of the one before,
    drawn back, and only points of the last one count.

    Source: Croce and Hein, ICML 2021 (arXiv 2103.01208), section 3.3.

    Returns:
        the iterates [B, ...] and whether each was seen misclassified by a decisive oracle, [B] bool.
    """
    z, warm = x + normal(x.shape, source, x), False
    stages = _STAGES if larger_radii else _STAGES[-1:]
    left, broken = steps, torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for factor, part in stages:
        ball = within.with_eps(radii(within.radius, x) * factor)
        last = factor == 1
        count = left if last else min(left - 1, math.ceil(part * steps))
        if count < 1:
            continue
        left -= count
        z = ball.project(x, z)
        z, broken = _climb(oracle, goal, x, z, ball, count, samples, warm, last)
        warm = True
    return z, broken


def _climb(
    oracle: Oracle,
    goal: Goal,
    x: Tensor,
    z: Tensor,
    within: ThreatSet,
    steps: int,
    samples: Tensor,
    warm: bool,
    final: bool,
) -> tuple[Tensor, Tensor]:
    """Take ``steps`` steps in one ball; the next iterate is P(z + η s), s the sign of the largest gradients, ||s||_1 = 1.

    η starts at eps and the number of coordinates at 20 % of them (after an earlier ball: at those changed there / 1.5).
    Every 4 % of the steps, with m the coordinates that the best point changes, the number becomes m / 1.5; where m has fallen
    below 95 % of its last value the climb goes on from the best point with η = eps, and elsewhere η is divided by 1.5, down to
    eps / 10. Source: Croce and Hein, ICML 2021, algorithm 1.
    """
    found, broken = z.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    index = torch.arange(len(x), device=x.device)
    eps = radii(within.radius, x).to(x.dtype)
    features, every = x[0].numel(), max(int(_EVERY * steps), 1)
    changed = _changed(z, x, eps) if warm else torch.full_like(eps, features)
    share = changed / features / _FACTOR if warm else torch.full_like(eps, _FIRST_SHARE)
    eta, best, best_gradient = eps.clone(), z, torch.zeros_like(z)
    record = torch.full_like(eps, -torch.inf)
    decisive = oracle.decisive and final
    for k in range(steps):
        value, logits, gradient = oracle.gradient(z, goal, samples[index])
        gradient, better = gradient.reshape(z.shape), value > record
        best, best_gradient = _choose(better, z, best), _choose(better, gradient, best_gradient)
        record = torch.where(better, value, record)
        if decisive and (wrong := goal.broken(logits)).any():
            found[index[wrong]], broken[index[wrong]] = z[wrong], True
            alive = (~with_siblings(wrong, samples[index])).nonzero()[:, 0]
            if not len(alive):
                return found, broken
            index, x, z, gradient, best = index[alive], x[alive], z[alive], gradient[alive], best[alive]
            best_gradient, record, eps, eta = best_gradient[alive], record[alive], eps[alive], eta[alive]
            changed, share, goal, within = changed[alive], share[alive], goal.select(alive), within.select(alive)
        if k and k % every == 0:
            now = _changed(best, x, eps)
            fell = now / changed < _FALL
            share, changed = now / features / _FACTOR, now
            eta = torch.where(fell, eps, eta / _FACTOR).maximum(_LEAST * eps)
            z, gradient = _choose(fell, best, z), _choose(fell, best_gradient, gradient)
        z = within.project(x, z + expand(eta, z) * sparse_direction(gradient, share))
    if oracle.randomised and oracle.eot < TRUSTED_DRAWS:
        found[index] = z
        return found, broken
    draws = oracle.logits(z, samples[index], oracle.eot)
    wrong = goal.broken(draws[-1]) & decisive
    better = (oracle.averaged(draws, goal) > record) | wrong
    found[index], broken[index] = _choose(better, z, best), wrong
    return found, broken


def sparse_direction(gradient: Tensor, share: Tensor) -> Tensor:
    """Return the signs of the largest |gradient| of each sample, ``share`` [B] of all coordinates, scaled to an l1 norm of 1.

    At least one coordinate is taken, and all that are as large as the smallest one taken.
    """
    flat = gradient.flatten(1)
    size, features = flat.abs(), flat.shape[1]
    place = ((1 - share) * features).clamp(0, features - 1).long()
    least = size.sort(1).values.gather(1, place[:, None])
    signs = flat.sign() * (size >= least)
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1)).reshape(gradient.shape)


def _changed(z: Tensor, x: Tensor, eps: Tensor) -> Tensor:
    # Rounding in the projection leaves changes of no size where there are none.
    return ((z - x).abs().flatten(1) > _NOTHING * eps[:, None]).sum(1).to(x.dtype)


def _choose(mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, *[1] * (one.dim() - 1)), one, other)
