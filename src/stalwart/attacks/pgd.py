"""Projected gradient descent and its relative BIM."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stalwart.attacks.ascent import ascend
from stalwart.attacks.base import Attack, Count
from stalwart.attacks.losses import Goal, LossName
from stalwart.attacks.oracle import Oracle
from stalwart.attacks.restarts import worst_of_runs
from stalwart.core.numbers import Number, require
from stalwart.core.random import generator
from stalwart.sets import L0, ThreatSet


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
        loss: "ce", "margin", "dlr", "scaled-ce", "targeted-ce", "targeted-margin" or "targeted-dlr". A targeted loss aims
            restart r at the class that is r-th most likely on the clean input (the true class left out).
        random_start: start from a random point of the set rather than from the clean input.
    """

    steps: Count = 20
    step: Number | None = None
    relative_step: Number | None = None
    restarts: Count = 1
    loss: LossName = "ce"
    random_start: bool = True
    self_contained: ClassVar[bool] = True

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

        def climb(restart: int, goal: Goal, x: Tensor, within: ThreatSet, samples: Tensor) -> tuple[Tensor, Tensor]:
            start = within.sample(x, generator(seed, "start", restart, device=x.device)) if self.random_start else x
            return ascend(oracle, goal, x, start, within, self.steps, self._step(within), samples)

        return worst_of_runs(oracle, self.loss, x, y, within, self.restarts, oracle.classes - 1, climb)

    def _step(self, within: ThreatSet) -> Tensor | float:
        if self.step is not None:
            return self.step
        if self.relative_step is not None:
            return self.relative_step * within.scale
        # A step of less than the whole range never displaces a pixel that the random start chose under L0.
        return 1.0 if isinstance(within, L0) else 2.5 / self.steps * within.scale


@dataclass(frozen=True, kw_only=True)
class BIM(PGD):
    """Basic iterative method: PGD from the clean input itself.

    Source: Kurakin, Goodfellow, Bengio, 2016 (arXiv 1607.02533), section 2.2.
    """

    steps: Count = 10
    random_start: bool = False
