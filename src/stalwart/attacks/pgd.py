"""Projected gradient descent and its relative BIM."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.attacks.ascent import ascend
from stalwart.attacks.base import Attack, Count
from stalwart.attacks.losses import Goal, LossName
from stalwart.attacks.oracle import Oracle
from stalwart.core.numbers import Number, require
from stalwart.core.random import generator
from stalwart.sets import L0, ThreatSet

_SELECTION_DRAWS = 20


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient descent with random starts and restarts, best iterate kept.

        z <- Project(z + step * steepest(grad loss(z)))

    Source: Madry et al., ICLR 2018 (arXiv 1706.06083), equation 3 of section 2.1; steepest direction by norm.

    Attributes:
        steps: gradient steps.
        step: step size in data units; default 2.5 * eps / steps (Linf, L2) or 1 (L0).
        relative_step: step size as a share of the radius, instead of ``step``.
        restarts: independent starts; only samples not yet broken go on.
        loss: "ce", "margin", "dlr", "targeted-ce" or "targeted-margin". A targeted loss aims restart r at the class that is
            r-th most likely on the clean input (the true class left out), as MultiTargeted does (arXiv 1910.09338).
        random_start: start from a random point of the set rather than from the clean input.
    """

    steps: Count = 20
    step: Number | None = None
    relative_step: Number | None = None
    restarts: Count = 1
    loss: LossName = "ce"
    random_start: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, f"steps must be at least 1, got {self.steps}.")
        require(self.restarts >= 1, f"restarts must be at least 1, got {self.restarts}.")
        require(self.step is None or self.relative_step is None, "give step or relative_step, not both.")
        for name in ("step", "relative_step"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be positive, got {value}.")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Run all restarts and return the best candidate of each sample."""
        targets = self._targets(oracle, x, y)
        found, alive = x.clone(), torch.arange(len(x), device=x.device)
        best = torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)
        for restart in range(self.restarts):
            mine, own = within.select(alive), x[alive]
            start = mine.sample(own, generator(seed, "start", restart, device=x.device)) if self.random_start else own
            target = None if targets is None else targets[alive, restart % targets.shape[1]]
            goal = Goal(self.loss, y[alive], target)
            z, broken = ascend(oracle, goal, own, start, mine, self.steps, self._step(mine), alive)
            if self.restarts == 1:
                return z
            value = self._worth(oracle, z, goal, alive)
            better = (value > best[alive]) | broken
            at = alive[better]
            found[at], best[at] = z[better], value[better]
            alive = alive[~broken]
            if not len(alive):
                break
        return found

    def _step(self, within: ThreatSet) -> Tensor | float:
        if self.step is not None:
            return self.step
        if self.relative_step is not None:
            return self.relative_step * within.scale
        # A step of less than the whole range never displaces a pixel that the random start chose under L0.
        return 1.0 if isinstance(within, L0) else 2.5 / self.steps * within.scale

    def _targets(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor | None:
        if not self.loss.startswith("targeted"):
            return None
        logits = oracle.logits(x, torch.arange(len(x), device=x.device))[0]
        return logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]

    def _worth(self, oracle: Oracle, z: Tensor, goal: Goal, index: Tensor) -> Tensor:
        # Across restarts the untargeted margin decides, whatever was climbed; fresh draws on a randomised model.
        draws = _SELECTION_DRAWS if oracle.randomised else 1
        return Goal("margin", goal.y)(oracle.logits(z, index, draws)).mean(0)


@dataclass(frozen=True, kw_only=True)
class BIM(PGD):
    """Basic iterative method: PGD from the clean input itself.

    Source: Kurakin, Goodfellow, Bengio, 2016 (arXiv 1607.02533), section 2.2.
    """

    steps: Count = 10
    random_start: bool = False
