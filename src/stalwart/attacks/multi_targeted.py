"""MultiTargeted: projected gradient ascent at one class after the other."""

from dataclasses import dataclass

from torch import Tensor

from stalwart.attacks.ascent import ascend
from stalwart.attacks.base import Count
from stalwart.attacks.losses import Goal, LossName
from stalwart.attacks.oracle import Oracle
from stalwart.attacks.pgd import PGD
from stalwart.attacks.restarts import worst_of_runs
from stalwart.core.numbers import require
from stalwart.core.random import generator
from stalwart.sets import ThreatSet


@dataclass(frozen=True, kw_only=True)
class MultiTargeted(PGD):
    """PGD on z_t - z_y for every class t != y in turn, the likeliest first; a broken sample leaves.

    Source: Gowal et al., 2019 (arXiv 1910.09338), algorithm 1.

    Attributes:
        loss: "targeted-margin" as published, "targeted-ce" or "targeted-dlr".
        targets: how many classes are aimed at, the likeliest on the clean input first; all K - 1 by default.
        restarts: random starts at each class.
    """

    loss: LossName = "targeted-margin"
    targets: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.loss.startswith("targeted"), f"multi-targeted takes a targeted loss, not '{self.loss}'; use pgd.")
        require(self.targets is None or self.targets >= 1, f"targets must be at least 1, got {self.targets}.")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Return the point of each sample that broke it, or else the one of largest margin loss of all targets."""

        def climb(run: int, goal: Goal, x: Tensor, within: ThreatSet, samples: Tensor) -> tuple[Tensor, Tensor]:
            start = within.sample(x, generator(seed, "start", run, device=x.device)) if self.random_start else x
            return ascend(oracle, goal, x, start, within, self.steps, self._step(within), samples)

        aims = min(self.targets or oracle.classes - 1, oracle.classes - 1)
        return worst_of_runs(oracle, self.loss, x, y, within, aims * self.restarts, aims, climb)
