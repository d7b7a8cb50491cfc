"""What the diagnostics look at: the model, the data and every attack's verdict per sample."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.attacks import attack
from stalwart.attacks.losses import LossName
from stalwart.evaluation.judge import Judge
from stalwart.evaluation.results import Probe
from stalwart.sets import ThreatSet
from stalwart.stochastic.rules import Rule


@dataclass
class Findings:
    """The evidence of one evaluation.

    Attributes:
        correct: per attack name, whether each sample survived at the main radius, [N] bool.
        by_radius: the same for the reference attack "pgd-ce" at every radius it ran at.
        kinds: per attack name, "noise", "white-box" or "transfer".
        worst: whether each sample survived the worst case over all attacks.
        left: the same for attacks that ran on what those before them had left: who survived all of these, [N] bool.
        sweep: per number of averaged draws, whether each sample survived, for randomised models.
        probe: what a look at the model told before any attack; None where nobody looked.
        doubled: per attack that was run again with twice the effort, who survived all attacks before it and after, [N] bool.
    """

    judge: Judge
    rule: Rule
    x: Tensor
    y: Tensor
    within: ThreatSet
    seed: int
    classes: int
    correct: dict[str, Tensor] = field(default_factory=dict)
    by_radius: dict[float, Tensor] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    worst: Tensor = field(default_factory=lambda: torch.zeros(0))
    left: dict[str, Tensor] = field(default_factory=dict)
    sweep: dict[int, Tensor] = field(default_factory=dict)
    probe: Probe | None = None
    doubled: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The model under evaluation."""
        return self.judge.model

    @property
    def differentiable(self) -> bool:
        """Whether the model's output carries a gradient; without one the reference attack cannot run."""
        return self.probe is None or not self.probe.has("no-gradient")

    @property
    def reference_draws(self) -> int:
        """Draws averaged by the reference attack."""
        return 20 if self.judge.randomised else 1

    def survives(self, x_adv: Tensor, count: int | None = None) -> Tensor:
        """Return whether the headline rule decides rightly at x_adv for the first ``count`` samples."""
        part = replace(self.judge, y=self.y[:count])
        return part.margins(x_adv, "diagnosis")[self.rule] > 0

    def reference(
        self, within: ThreatSet, count: int, eot: int | None = None, loss: LossName = "ce", **options: Any
    ) -> Tensor:
        """Run the reference attack, PGD-20 on the cross entropy, on the first ``count`` samples and return its points."""
        run = attack("pgd", steps=20, loss=loss, eot=self.reference_draws if eot is None else eot, **options)
        return run(self.model, self.x[:count], self.y[:count], within=within, seed=self.seed).x_adv


def gap(better: Tensor, worse: Tensor, errors: float = 2.0) -> tuple[float, bool]:
    """Return mean(better) - mean(worse) of paired outcomes [N] bool, and whether it exceeds that many standard errors.

    The standard error is that of paired proportions (McNemar 1947): the square root of the number of disagreements, over N.
    """
    difference = float(better.float().mean() - worse.float().mean())
    disagreements = int((better != worse).sum())
    return difference, difference * len(better) > errors * disagreements**0.5
