"""Auto-PGD: projected gradient ascent with momentum that chooses its step size itself."""

import itertools
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from stalwart.attacks.apgd_l1 import climb_l1
from stalwart.attacks.ascent import TRUSTED_DRAWS
from stalwart.attacks.base import BallAttack, Count
from stalwart.attacks.losses import Goal, LossName
from stalwart.attacks.oracle import Oracle
from stalwart.attacks.restarts import with_siblings, worst_of_runs
from stalwart.core.numbers import require
from stalwart.core.random import generator
from stalwart.sets import L1, ThreatSet
from stalwart.sets.base import expand, radii

_MOMENTUM = 0.75
_RISES = 0.75


@dataclass(frozen=True, kw_only=True)
class APGD(BallAttack):
    """Auto-PGD (APGD) in an linf, l2 or l1 ball: no step size to tune, so a weak result is not for want of tuning.

        u <- P(z_k + η steepest(grad loss(z_k)));  z_{k+1} <- P(z_k + α (u - z_k) + (1 - α) (z_k - z_{k-1}))

    α = 0.75, and 1 in the first step. η starts at 2 eps. At a checkpoint w_j (:func:`checkpoints`) η is halved, and the
    climb goes on from the best point so far, if either

    1. the loss rose in fewer than ρ = 0.75 of the steps since w_{j-1}, or
    2. η was not halved at w_{j-1} and the best loss has not grown since.

    Both are looked at as soon as the loss at z_{w_j} is known, as in the authors' code.
    In an l1 ball steps are sparse and without momentum instead, see :mod:`stalwart.attacks.apgd_l1`.
    Source: Croce and Hein, ICML 2020 (arXiv 2003.01690), algorithm 1; targets as in their AutoAttack (APGD-T).

    Attributes:
        steps: gradient steps of a run, at least 1.
        restarts: independent random starts, at least 1; only samples not yet broken go on.
        loss: "ce", "margin", "dlr", "scaled-ce", "targeted-ce", "targeted-margin" or "targeted-dlr".
        targets: how many classes a targeted loss aims at, the most likely ones first, one run for each and restart; at most
            K - 1 are.
        larger_radii: in l1, climb in balls of 3 and 2 eps first; no matter elsewhere.
    """

    steps: Count = 100
    restarts: Count = 1
    loss: LossName = "ce"
    targets: Count = 9
    larger_radii: bool = False
    self_contained: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "restarts", "targets"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}.")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Run all restarts, for all targets if the loss has any, and return the best candidate of each sample.

        Raises:
            InputError: the threat set is not an linf, l2 or l1 ball.
        """
        self.require_ball(within)

        def climb_from(run: int, goal: Goal, x: Tensor, within: ThreatSet, samples: Tensor) -> tuple[Tensor, Tensor]:
            source = generator(seed, "start", run, device=x.device)
            if isinstance(within, L1):
                return climb_l1(oracle, goal, x, within, self.steps, samples, source, self.larger_radii)
            start = within.sample(x, source)
            return climb(oracle, goal, x, start, within, self.steps, samples)

        aims = min(self.targets, oracle.classes - 1) if self.loss.startswith("targeted") else 1
        return worst_of_runs(oracle, self.loss, x, y, within, self.restarts * aims, aims, climb_from, together=aims)


def checkpoints(steps: int) -> list[int]:
    """Return after which steps the step size may be halved: w_j = ceil(p_j steps) for all p_j < 1.

    p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), counted in hundredths so that none is rounded up.
    """
    place, interval, found = 22, 22, []
    while place < 100:
        found.append(-(-place * steps // 100))
        interval = max(interval - 3, 6)
        place += interval
    return found


def climb(
    oracle: Oracle, goal: Goal, x: Tensor, start: Tensor, within: ThreatSet, steps: int, samples: Tensor
) -> tuple[Tensor, Tensor]:
    """Climb ``goal`` from ``start``; who leaves the batch and which iterate is kept is as in :func:`ascend`.

    ``samples`` may hold a sample in several rows; all of them leave with the first that is misclassified.

    Returns:
        the iterates [B, ...] and whether each was seen misclassified by a decisive oracle, [B] bool.
    """
    x, start = oracle.arrange(x), oracle.arrange(start.detach())
    found, broken = start.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    index = torch.arange(len(x), device=x.device)
    places = sorted({0, *checkpoints(steps)})
    widths = {after: after - before for before, after in itertools.pairwise(places)}
    state = _State.at(start, 2 * radii(within.radius, x).to(x.dtype))
    for k in range(steps):
        value, logits, gradient = oracle.gradient(state.z, goal, samples[index])
        state = state.met(value, gradient, first=k == 0)
        if oracle.decisive and (wrong := goal.broken(logits)).any():
            found[index[wrong]], broken[index[wrong]] = state.z[wrong], True
            alive = (~with_siblings(wrong, samples[index])).nonzero()[:, 0]
            if not len(alive):
                return found, broken
            index, x, state = index[alive], x[alive], state.select(alive)
            goal, within = goal.select(alive), within.select(alive)
        if k in widths:
            state = state.checked(widths[k])
        state = state.moved(x, within, 1.0 if k == 0 else _MOMENTUM)
    if oracle.randomised and oracle.eot < TRUSTED_DRAWS:
        found[index] = state.z
        return found, broken
    draws = oracle.logits(state.z, samples[index], oracle.eot)
    wrong = goal.broken(draws[-1]) & oracle.decisive
    better = (oracle.averaged(draws, goal) > state.best_value) | wrong
    found[index], broken[index] = _choose(better, state.z, state.best), wrong
    return found, broken


@dataclass(frozen=True, eq=False)
class _State:
    """What a climb knows of each sample, [B] or [B, ...].

    Attributes:
        z, gradient, value: this iterate, with the loss and its gradient there.
        before: the iterate before it.
        best, best_gradient, best_value: the same for the iterate of largest loss.
        eta: step size.
        rises: steps since the last checkpoint in which the loss rose.
        record: best_value at the last checkpoint.
        halved: whether eta was halved there.
    """

    z: Tensor
    gradient: Tensor
    value: Tensor
    before: Tensor
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    eta: Tensor
    rises: Tensor
    record: Tensor
    halved: Tensor

    @staticmethod
    def at(z: Tensor, eta: Tensor) -> "_State":
        """Return the state before anything but the start is known."""
        flat, low, none = torch.zeros_like(z), torch.full_like(eta, -torch.inf), torch.zeros_like(eta)
        return _State(z, flat, low, z, z, flat, low, eta, none, low, none.bool())

    def met(self, value: Tensor, gradient: Tensor, first: bool) -> "_State":
        """Return the state once the loss and its gradient at z are known; the first iterate is no rise but sets a record."""
        better = value > self.best_value
        best_value = torch.where(better, value, self.best_value)
        return replace(
            self,
            gradient=gradient,
            value=value,
            best=_choose(better, self.z, self.best),
            best_gradient=_choose(better, gradient, self.best_gradient),
            best_value=best_value,
            rises=self.rises if first else self.rises + (value > self.value),
            record=best_value if first else self.record,
        )

    def checked(self, width: int) -> "_State":
        """Return the state after a checkpoint ``width`` steps behind the last one."""
        halve = (self.rises < _RISES * width) | (~self.halved & (self.best_value <= self.record))
        return replace(
            self,
            z=_choose(halve, self.best, self.z),
            gradient=_choose(halve, self.best_gradient, self.gradient),
            value=torch.where(halve, self.best_value, self.value),
            eta=torch.where(halve, self.eta / 2, self.eta),
            rises=torch.zeros_like(self.rises),
            record=self.best_value,
            halved=halve,
        )

    def moved(self, x: Tensor, within: ThreatSet, alpha: float) -> "_State":
        """Return the state after a step that keeps 1 - ``alpha`` of the last one's displacement."""
        z = self.z
        there = within.project(x, z + expand(self.eta, z) * within.uphill(z, self.gradient))
        z = within.project(x, z + alpha * (there - z) + (1 - alpha) * (z - self.before))
        return replace(self, z=z, before=self.z)

    def select(self, index: Tensor) -> "_State":
        """Return the state of some of the samples."""
        return _State(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def _choose(mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, *[1] * (one.dim() - 1)), one, other)
