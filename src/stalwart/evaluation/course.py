"""One course of attacks: each entry of a suite is played against the model, and what it left is written down."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stalwart.core.progress import Advance
from stalwart.evaluation.blocks import Found, Subject, Work, one_by_one, readable
from stalwart.evaluation.events import median_flips
from stalwart.evaluation.findings import Findings
from stalwart.evaluation.judge import Candidates
from stalwart.evaluation.kept import Kept
from stalwart.evaluation.results import AttackRow, Rate
from stalwart.evaluation.samples import Samples
from stalwart.evaluation.suites import Entry
from stalwart.sets import Events


@dataclass
class Course:
    """The attacks of one evaluation, in order.

    Attributes:
        findings: what the diagnostics look at; filled as attacks are played.
        clean: whether each clean input is answered rightly, [N] bool.
        table: per-sample results, a column an attack.
        candidates: by radius, the worst point found so far for every input.
        store: what was found in blocks before an evaluation was killed.
        advance: called with the number of attacks done.
        subject: what is attacked.
        work: attacks its blocks.
        rows: what the report says of each attack.
        ahead: how many attacks were run ahead of their turn.
    """

    findings: Findings
    clean: Tensor
    table: Samples
    candidates: Mapping[float, Candidates]
    store: Kept
    advance: Advance
    subject: Subject
    work: Work = one_by_one
    rows: list[AttackRow] = field(default_factory=list)
    ahead: int = 0

    def run_ahead(self, plays: Sequence[tuple[Entry, float]]) -> None:
        """Run attacks that wait for no other one all together, where several processes share the work and results are kept."""
        if self.work is one_by_one or self.store.folder is None:
            return
        free = [(entry, eps) for entry, eps in plays if not entry.survivors]
        blocks = [
            block for entry, eps in free for block in self.subject.blocks(entry, eps, torch.ones_like(self.clean))
        ]
        missing = [block for block in blocks if self.store.read(block, self.subject.x.device) is None]
        done = len(blocks) - len(missing)
        for block, found in self.work(self.subject, missing):
            self.store.write(block, found)
            done += 1
            self.ahead = len(free) * done // len(blocks)
            self.advance(self.ahead, f"{done} of {len(blocks)} blocks")

    def play(self, entry: Entry, eps: float) -> None:
        """Run one attack at one radius, or read what it found, and write down what it left."""
        f, held = self.findings, self.candidates[eps]
        judge, main, name = f.judge, eps == f.within.size, f"{entry.name}@{eps:g}"
        found = self._found(entry, eps, held.correct(f.rule) if entry.survivors else torch.ones_like(self.clean))
        result = found.result
        held.offer(result.x_adv)
        correct = judge.margins(result.x_adv, entry.name, eps)[f.rule] > 0
        if entry.survivors:
            correct &= held.correct(f.rule)
        self.table.add(entry.name if main else name, correct)
        row = _row(entry, eps, f.rule if judge.randomised else "deterministic", correct, found)
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
        self.advance(max(len(self.rows), self.ahead), f"{entry.name} at eps {eps:g}, at most {stand:.1%} robust")

    def _found(self, entry: Entry, eps: float, left: Tensor) -> Found:
        """Attack the inputs that are left, [N] bool, in blocks, but for those whose results are kept."""
        blocks, device = self.subject.blocks(entry, eps, left), self.subject.x.device
        found = {block.number: self.store.read(block, device) for block in blocks}
        for block, one in self.work(self.subject, [block for block in blocks if found[block.number] is None]):
            self.store.write(block, one)
            found[block.number] = one
        pairs = [(block, found[block.number]) for block in blocks]
        return self.subject.merge([(block, one) for block, one in pairs if one is not None])

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


def _row(entry: Entry, eps: float, rule: str, correct: Tensor, found: Found) -> AttackRow:
    result = found.result
    return AttackRow(
        name=entry.name,
        kind=entry.kind,
        eps=eps,
        rule=rule,
        eot=entry.options.get("eot", 1) if rule != "deterministic" else 1,
        robust=rate_of(correct),
        forwards=float(result.cost.forwards.float().mean()),
        backwards=float(result.cost.backwards.float().mean()),
        seconds=round(found.seconds, 3),
        options={
            "attack": entry.attack,
            **readable(entry.options),
            **({"inputs": "survivors"} if entry.survivors else {}),
        },
        distance=_median(result.distance),
    )


def _median(distance: Tensor | None) -> float | None:
    """Return the median of distances [N]; None where there are none, or where it is infinite."""
    middle = math.inf if distance is None else float(distance.median())
    return middle if math.isfinite(middle) else None
