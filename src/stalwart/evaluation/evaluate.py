"""The evaluation: every attack of a suite on every input, the worst case per input, curves, statistics and warnings."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.attacks import Attack, AttackResult
from stalwart.attacks.base import Cost
from stalwart.attacks.guard import undisturbed
from stalwart.core.checks import check_images, check_labels, check_logits
from stalwart.core.errors import InputError
from stalwart.core.numbers import parse_number, require
from stalwart.core.progress import Advance, silent
from stalwart.core.random import derive
from stalwart.core.registry import suggest
from stalwart.core.tensors import digest, fingerprint
from stalwart.evaluation.diagnostics import diagnose
from stalwart.evaluation.events import median_flips
from stalwart.evaluation.findings import Findings
from stalwart.evaluation.judge import Candidates, Judge
from stalwart.evaluation.kept import Kept
from stalwart.evaluation.pictures import pictures
from stalwart.evaluation.randomised import stochastic_section, sweep_draws
from stalwart.evaluation.results import AttackRow, CurvePoint, Evaluation, Rate
from stalwart.evaluation.suites import Entry, suite
from stalwart.sets import Events, ThreatSet
from stalwart.stochastic import RULES, is_random, noise
from stalwart.stochastic.rules import Rule


@dataclass
class Samples:
    """Per-sample results: one row an input, one column a question (1: answered rightly)."""

    columns: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, name: str, values: Tensor) -> None:
        """Add a column of integers or booleans [N]."""
        self.columns[name] = values.long().tolist()

    def csv(self) -> str:
        """Return the table as CSV text."""
        lines = [",".join(self.columns)]
        lines += [",".join(map(str, row)) for row in zip(*self.columns.values(), strict=True)]
        return "\n".join(lines) + "\n"

    @classmethod
    def parse(cls, text: str) -> "Samples":
        """Read :meth:`csv` back; values stay text.

        Raises:
            ValueError: rows of different lengths.
        """
        head, *lines = text.splitlines()
        columns = zip(*(line.split(",") for line in lines), strict=True)
        return cls({name: list(column) for name, column in zip(head.split(","), columns, strict=True)})


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    within: ThreatSet,
    suite_name: str = "standard",
    seed: int = 0,
    rule: Rule = "single",
    curve: Sequence[float | str] = (),
    dataset: str = "unnamed",
    split: str = "test",
    classes: Sequence[str] = (),
    advance: Advance = silent,
    origin: nn.Module | None = None,
    kept: Path | None = None,
) -> tuple[Evaluation, Samples]:
    """Run a suite against a model and return the results with the per-sample table.

    Args:
        model: maps [B, ...] to logits [B, K]; left exactly as it was.
        x: inputs [N, ...] in data units.
        y: labels [N].
        within: the threat set, with one radius for all samples.
        suite_name: "quick", "standard" or another name of :data:`stalwart.evaluation.suites.SUITES`.
        seed: root of all randomness.
        rule: the decision rule of a randomised model that the headline numbers are for; no matter for a deterministic one.
        curve: further radii at which the suite's curve attacks are run.
        dataset: its name, for the report.
        split: which part of it this is, for the report.
        classes: names of the classes, for the report.
        advance: called with the number of attacks done.
        origin: the network that the model was converted from, a source of transfer attacks where a suite has such.
        kept: a folder for what attacks found, so that a killed evaluation goes on; it is gone when all is done.

    Raises:
        InputError: NaN, values out of range, wrong shapes, labels that do not exist, logits that are not finite.
        UsageError: an unknown suite, or a threat set with one radius a sample.
    """
    started = time.monotonic()
    chosen = suite(suite_name)
    check_images(x, within.low, within.high)
    check_labels(y, len(x))
    require(not isinstance(within.radius, Tensor), "evaluate takes one radius for all samples, not one a sample.")
    require(rule in RULES, f"unknown rule '{rule}'.{suggest(rule, RULES)} Known: {', '.join(RULES)}.")
    x, y = x.clamp(within.low, within.high), y.long().to(x.device)
    classes_count, randomised, switchable = _look(model, x, y, seed)
    judge = Judge(model, y, randomised, seed, switchable)
    require(
        rule in judge.rules or not randomised,
        "the rule 'mean-network' needs a model whose noise can be switched off; build it from noise layers.",
    )
    if not randomised:
        rule = "single"
    findings = Findings(judge, rule, x, y, within, seed, classes_count)
    clean = judge.margins(x, "clean")[rule] > 0
    table = Samples()
    for name, column in (("index", torch.arange(len(x))), ("label", y), ("clean", clean)):
        table.add(name, column)

    entries = chosen.fitting(model, randomised, within, origin is not None)
    if randomised and not switchable:
        entries = tuple(entry for entry in entries if entry.kind != "transfer")
    radii = _radii(curve, within)
    rows: list[AttackRow] = []
    candidates = {eps: Candidates(judge, x) for eps in radii}
    store = Kept(kept, "" if kept is None else fingerprint(model, x, y, within.describe(), suite_name, str(seed)))
    for eps in radii:
        for entry in entries:
            main = eps == within.size
            if not (main or entry.curve):
                continue
            begun = time.monotonic()
            name = f"{entry.name}@{eps:g}"
            result = store.read(name, x.device)
            if result is None:
                left = candidates[eps].correct(rule) if entry.survivors else torch.ones_like(clean)
                result = _attack(
                    entry.build(origin), model, x, y, left, within.with_eps(eps), derive(seed, entry.name, eps)
                )
                store.write(name, result)
            seconds = time.monotonic() - begun
            candidates[eps].offer(result.x_adv)
            correct = judge.margins(result.x_adv, entry.name, eps)[rule] > 0
            if entry.survivors:
                correct &= candidates[eps].correct(rule)
            table.add(entry.name if main else f"{entry.name}@{eps:g}", correct)
            row = _row(entry, eps, rule if randomised else "deterministic", correct, result, seconds)
            if isinstance(within, Events):
                broken = clean & ~correct
                row = row.model_copy(update={"flips": median_flips(x[broken], result.x_adv[broken])})
            rows.append(row)
            if main and not entry.survivors:
                findings.correct[entry.name], findings.kinds[entry.name] = correct, entry.kind
            if entry.name == "pgd-ce":
                findings.by_radius[eps] = correct
            stand = float(candidates[eps].correct(rule).float().mean())
            advance(len(rows), f"{entry.name} at eps {eps:g}, at most {stand:.1%} robust")

    points = [CurvePoint(eps=0.0, robust=_rate(clean))] if radii[0] > 0 else []
    for smaller, eps in zip([None, *radii], radii, strict=False):
        if smaller is not None:
            # What broke a sample inside a small set is also in every larger one.
            candidates[eps].merge(candidates[smaller])
        points.append(CurvePoint(eps=eps, robust=_rate(candidates[eps].correct(rule))))
    worst = candidates[within.size]
    findings.worst = worst.correct(rule)
    table.add("worst", findings.worst)
    if randomised:
        sweep_draws(findings)
        for draws, survived in findings.sweep.items():
            table.add(f"pgd-ce-draws-{draws}", survived)
    evaluation = Evaluation(
        suite=suite_name,
        dataset=dataset,
        split=split,
        samples=len(x),
        threat=within.describe(),
        eps=within.size,
        seed=seed,
        randomised=randomised,
        rule=rule if randomised else "deterministic",
        classes=[str(name) for name in classes],
        clean=_rate(clean),
        worst=_rate(findings.worst),
        attacks=sorted(rows, key=lambda row: row.eps != within.size),
        curve=points,
        flags=diagnose(findings),
        stochastic=stochastic_section(findings, worst) if randomised else None,
        pictures=pictures(judge, rule, x, worst.best[rule]),
        seconds=time.monotonic() - started,
        inputs=digest(x, y),
    )
    store.clear()
    return evaluation, table


def _attack(
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


def steps_of(
    suite_name: str, model: nn.Module, curve: Sequence[float | str], within: ThreatSet, origin: bool = False
) -> int:
    """Return how many attacks :func:`evaluate` will run, for a progress bar."""
    entries = suite(suite_name).fitting(model, is_random(model), within, origin)
    return len(entries) + (len(_radii(curve, within)) - 1) * sum(entry.curve for entry in entries)


def _look(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[int, bool, bool]:
    with undisturbed(model, seed), torch.no_grad():
        try:
            logits = model(x[:2])
        except RuntimeError as problem:
            raise InputError(f"the model does not run on inputs of shape {list(x.shape)}: {problem}.") from problem
        check_logits(logits, len(x[:2]))
        check_labels(y, len(x), logits.shape[1])
        if not torch.isfinite(logits).all():
            raise InputError("the model's logits are NaN or infinite on the first inputs; its weights are damaged.")
        randomised = is_random(model) or not torch.equal(logits, model(x[:2]))
        with noise(model, "off"):
            return logits.shape[1], randomised, torch.equal(model(x[:2]), model(x[:2]))


def _radii(curve: Sequence[float | str], within: ThreatSet) -> list[float]:
    return sorted({eps for eps in map(parse_number, curve) if eps > 0} | {within.size})


def _rate(correct: Tensor) -> Rate:
    return Rate.of(int(correct.sum()), len(correct))


def _row(entry: Entry, eps: float, rule: str, correct: Tensor, result: AttackResult, seconds: float) -> AttackRow:
    return AttackRow(
        name=entry.name,
        kind=entry.kind,
        eps=eps,
        rule=rule,
        eot=entry.options.get("eot", 1) if rule != "deterministic" else 1,
        robust=_rate(correct),
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
