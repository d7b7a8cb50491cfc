"""Judging candidates: what each decision rule makes of them, on draws that no attack has seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stalwart.attacks.guard import undisturbed
from stalwart.attacks.losses import margin
from stalwart.core.random import derive
from stalwart.stochastic import RULES, draw_logits, noise
from stalwart.stochastic.rules import Rule

SELECTION_DRAWS = 20
_BATCH = 256


@dataclass(frozen=True)
class Judge:
    """A model and the rules it is judged under.

    Attributes:
        model: maps [B, ...] to logits [B, K].
        y: labels [N].
        randomised: whether its answers vary.
        seed: root of the judging draws.
        switchable: whether its noise can be switched off, which takes noise layers; else there is no mean network.
    """

    model: nn.Module
    y: Tensor
    randomised: bool
    seed: int
    switchable: bool = True

    @property
    def rules(self) -> Sequence[Rule]:
        """The decision rules that make a difference for this model."""
        return RULES[: 1 if not self.randomised else 3 if self.switchable else 2]

    def margins(self, x: Tensor, *path: object) -> dict[Rule, Tensor]:
        """Return the margin z_y - max_{j != y} z_j of each rule's decision on fresh draws, [N] each; > 0 is right."""
        return self._margins(self._draws(x, *path), x, *path)

    def standings(self, x: Tensor, *path: object) -> dict[Rule, Tensor]:
        """Return how well each rule stands at x, [N] each: candidates with smaller values are worse for the defender.

        For the single draw of a randomised model this is the share of 20 draws that are right (the mean margin breaks
        ties), so that no candidate is preferred for one lucky draw; otherwise it is the margin of the decision.
        """
        logits = self._draws(x, "standing", *path)
        found = self._margins(logits, x, "standing", *path)
        if self.randomised:
            spread = -margin(logits, self.y)
            found["single"] = (spread > 0).float().mean(0) + 1e-3 * spread.mean(0).tanh()
        return found

    def _draws(self, x: Tensor, *path: object) -> Tensor:
        return self.logits(x, SELECTION_DRAWS if self.randomised else 1, *path)

    def _margins(self, logits: Tensor, x: Tensor, *path: object) -> dict[Rule, Tensor]:
        found: dict[Rule, Tensor] = {"single": -margin(logits[0], self.y)}
        if "mean-softmax" in self.rules:
            found["mean-softmax"] = -margin(logits.log_softmax(-1).logsumexp(0), self.y)
        if "mean-network" in self.rules:
            with noise(self.model, "off"):
                found["mean-network"] = -margin(self.logits(x, 1, *path)[0], self.y)
        return found

    def survived(self, x: Tensor, draws: int) -> Tensor:
        """Return for each of ``draws`` draws whether it decides rightly, [draws, N]: what an attacker with retries meets."""
        return -margin(self.logits(x, draws, "retries"), self.y) > 0

    def logits(self, x: Tensor, draws: int, *path: object) -> Tensor:
        """Return logits [draws, N, K] of a model left untouched; ``path`` names the noise stream."""
        with undisturbed(self.model, derive(self.seed, "judge", *path)), torch.no_grad():
            return torch.cat([draw_logits(self.model, part, draws) for part in x.split(_BATCH)], 1)


class Candidates:
    """The worst point found so far for every input and rule; the clean input is the first candidate."""

    def __init__(self, judge: Judge, x: Tensor) -> None:
        self.judge = judge
        self.best = {rule: x.clone() for rule in judge.rules}
        self.standing = judge.standings(x)

    def offer(self, x_adv: Tensor) -> None:
        """Keep each point of x_adv [N, ...] where it stands worse for the defender than what is held."""
        for rule, standing in self.judge.standings(x_adv).items():
            self._keep(rule, x_adv, standing)

    def merge(self, other: "Candidates") -> None:
        """Offer the other's candidates; they keep the standing they were chosen by."""
        for rule in self.best:
            self._keep(rule, other.best[rule], other.standing[rule])

    def correct(self, rule: Rule) -> Tensor:
        """Return whether the rule decides rightly on its worst candidates, [N] bool, on draws not used to choose them."""
        return self.judge.margins(self.best[rule], "final")[rule] > 0

    def _keep(self, rule: Rule, x_adv: Tensor, standing: Tensor) -> None:
        worse = standing < self.standing[rule]
        self.best[rule][worse] = x_adv[worse]
        self.standing[rule][worse] = standing[worse]
