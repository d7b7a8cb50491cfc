"""One course of attacks: each entry of a suite is played against the model, and what it left is written down."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.attacks import Attack, AttackResult
from stalwart.attacks.base import Cost
from stalwart.core.progress import Advance
from stalwart.core.random import derive
from stalwart.evaluation.events import median_flips
from stalwart.evaluation.findings import Findings
from stalwart.evaluation.judge import Candidates
from stalwart.evaluation.kept import Kept
from stalwart.evaluation.results import AttackRow, Rate
from stalwart.evaluation.samples import Samples
from stalwart.evaluation.suites import Entry
from stalwart.sets import Events, ThreatSet


@dataclass
class Course:
    """The attacks of one evaluation, in order.

    Attributes:
        findings: what the diagnostics look at; filled as attacks are played.
        clean: whether each clean input is answered rightly, [N] bool.
        table: per-sample results, a column an attack.
        candidates: by radius, the worst point found so far for every input.
        store: results of attacks that an evaluation which was killed had finished.
        advance: called with the number of attacks done.
        origin: the network that the model was converted from, if it is at hand.
        rows: what the report says of each attack.
    """

    findings: Findings
    clean: Tensor
    table: Samples
    candidates: Mapping[float, Candidates]
    store: Kept
    advance: Advance
    origin: nn.Module | None = None
    rows: list[AttackRow] = field(default_factory=list)

    def play(self, entry: Entry, eps: float) -> None:
        """Run one attack at one radius, or read what it found, and write down what it left."""
        f, held, begun = self.findings, self.candidates[eps], time.monotonic()
        judge, main, name = f.judge, eps == f.within.size, f"{entry.name}@{eps:g}"
        result = self.store.read(name, f.x.device)
        if result is None:
            left = held.correct(f.rule) if entry.survivors else torch.ones_like(self.clean)
            run, within = entry.build(self.origin), f.within.with_eps(eps)
            result = attack_left(run, f.model, f.x, f.y, left, within, derive(f.seed, entry.name, eps))
            self.store.write(name, result)
        seconds = time.monotonic() - begun
        held.offer(result.x_adv)
        correct = judge.margins(result.x_adv, entry.name, eps)[f.rule] > 0
        if entry.survivors:
            correct &= held.correct(f.rule)
        self.table.add(entry.name if main else name, correct)
        row = _row(entry, eps, f.rule if judge.randomised else "deterministic", correct, result, seconds)
        if isinstance(f.within, Events):
            broken = self.clean & ~correct
            row = row.model_copy(update={"flips": median_flips(f.x[broken], result.x_adv[broken])})
        self.rows.append(row)
        if main and entry.survivors:
            f.left[entry.name] = correct
        elif main:
            f.correct[entry.name], f.kinds[entry.name] = correct, entry.kind
        if entry.name == "pgd-ce":
            f.by_radius[eps] = correct
        stand = float(held.correct(f.rule).float().mean())
        self.advance(len(self.rows), f"{entry.name} at eps {eps:g}, at most {stand:.1%} robust")

    def play_again(self, entry: Entry) -> None:
        """Run an attack with more effort at the main radius, and note who survived before and after."""
        held = self.candidates[self.findings.within.size]
        before = held.correct(self.findings.rule)
        self.play(entry, self.findings.within.size)
        self.findings.doubled[entry.name] = before, held.correct(self.findings.rule)
        for verdicts in (self.findings.left, self.findings.correct):
            verdicts.pop(entry.name, None)


def rate_of(correct: Tensor) -> Rate:
    """Return the share of samples [N] bool with its interval."""
    return Rate.of(int(correct.sum()), len(correct))


def attack_left(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, left: Tensor, within: ThreatSet, seed: int
) -> AttackResult:
    """Attack the inputs that are left, [N] bool; the others stay as they are, at no cost."""
    if left.all():
        return attack(model, x, y, within=within, seed=seed)
    x_adv, success, margin = x.clone(), ~left, torch.zeros(len(x), dtype=x.dtype, device=x.device)
    forwards = torch.zeros(len(x), dtype=torch.long, device=x.device)
    backwards = forwards.clone()
    if left.any():
        found = attack(model, x[left], y[left], within=within, seed=seed)
        x_adv[left], success[left], margin[left] = found.x_adv, found.success, found.margin.to(margin)
        forwards[left], backwards[left] = found.cost.forwards.to(forwards), found.cost.backwards.to(backwards)
    return AttackResult(x_adv, success, margin, Cost(forwards, backwards))


def _row(entry: Entry, eps: float, rule: str, correct: Tensor, result: AttackResult, seconds: float) -> AttackRow:
    return AttackRow(
        name=entry.name,
        kind=entry.kind,
        eps=eps,
        rule=rule,
        eot=entry.options.get("eot", 1) if rule != "deterministic" else 1,
        robust=rate_of(correct),
        forwards=float(result.cost.forwards.float().mean()),
        backwards=float(result.cost.backwards.float().mean()),
        seconds=round(seconds, 3),
        options={
            "attack": entry.attack,
            **_readable(entry.options),
            **({"inputs": "survivors"} if entry.survivors else {}),
        },
        distance=_median(result.distance),
    )


def _readable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the names of functions in their place, such as that of a foreign attack."""
    return {
        key: getattr(value, "__name__", type(value).__name__) if callable(value) else value
        for key, value in options.items()
    }


def _median(distance: Tensor | None) -> float | None:
    """Return the median of distances [N]; None where there are none, or where it is infinite."""
    middle = math.inf if distance is None else float(distance.median())
    return middle if math.isfinite(middle) else None
