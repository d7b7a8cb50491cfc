"""The evaluation: every attack of a suite on every input, the worst case per input, curves, statistics and warnings."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from stalwart.attacks.guard import undisturbed
from stalwart.core.checks import check_images, check_labels, check_logits
from stalwart.core.errors import InputError
from stalwart.core.numbers import parse_number, require
from stalwart.core.progress import Advance, silent
from stalwart.core.registry import suggest
from stalwart.core.tensors import digest
from stalwart.evaluation.adaptive import doubled, efforts
from stalwart.evaluation.blocks import Subject, Work, one_by_one
from stalwart.evaluation.course import Course, rate_of
from stalwart.evaluation.diagnostics import diagnose
from stalwart.evaluation.findings import Findings
from stalwart.evaluation.judge import Candidates, Judge
from stalwart.evaluation.kept import Kept
from stalwart.evaluation.pictures import pictures
from stalwart.evaluation.probe import probe
from stalwart.evaluation.randomised import stochastic_section, sweep_draws
from stalwart.evaluation.results import CurvePoint, Evaluation, Probe
from stalwart.evaluation.samples import Samples
from stalwart.evaluation.suites import Entry, Suite, suite
from stalwart.sets import ThreatSet
from stalwart.stochastic import RULES, is_random, noise
from stalwart.stochastic.rules import Rule


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
    work: Work = one_by_one,
    batch_size: int | None = None,
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
        work: attacks blocks of inputs, perhaps in other processes; results are those of this one alone.
        batch_size: inputs attacked together, a block; results depend on it. By default as many as suit the model.

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
    findings = Findings(judge, rule, x, y, within, seed, classes_count, probe=probe(judge, x, within, seed))
    clean = judge.margins(x, "clean")[rule] > 0
    table = Samples()
    for name, column in (("index", torch.arange(len(x))), ("label", y), ("clean", clean)):
        table.add(name, column)

    radii = _radii(curve, within)
    candidates = {eps: Candidates(judge, x) for eps in radii}
    subject = Subject(model, x, y, within, seed, batch_size, origin)
    store = Kept(kept, "" if kept is None else subject.fingerprint)
    course = Course(findings, clean, table, candidates, store, advance, subject, work)
    entries = _entries(chosen, judge, within, origin is not None, findings.probe)
    plays = [(entry, eps) for eps in radii for entry in entries if eps == within.size or entry.curve]
    course.run_ahead(plays)
    for entry, eps in plays:
        course.play(entry, eps)
    for entry in doubled(entries, findings) if chosen.settles else ():
        course.play_again(entry)

    points = [CurvePoint(eps=0.0, robust=rate_of(clean))] if radii[0] > 0 else []
    for smaller, eps in zip([None, *radii], radii, strict=False):
        if smaller is not None:
            # What broke a sample inside a small set is also in every larger one.
            candidates[eps].merge(candidates[smaller])
        points.append(CurvePoint(eps=eps, robust=rate_of(candidates[eps].correct(rule))))
    worst = candidates[within.size]
    findings.worst = worst.correct(rule)
    table.add("worst", findings.worst)
    if randomised and findings.differentiable:
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
        clean=rate_of(clean),
        worst=rate_of(findings.worst),
        attacks=sorted(course.rows, key=lambda row: row.eps != within.size),
        curve=points,
        flags=diagnose(findings),
        probe=findings.probe,
        stochastic=stochastic_section(findings, worst) if randomised else None,
        pictures=pictures(judge, rule, x, worst.best[rule]),
        seconds=time.monotonic() - started,
        inputs=digest(x, y),
    )
    store.clear()
    return evaluation, table


def steps_of(
    suite_name: str,
    model: nn.Module,
    curve: Sequence[float | str],
    within: ThreatSet,
    origin: bool = False,
    data: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> int:
    """Return how many attacks :func:`evaluate` will run, for a progress bar.

    A suite that looks at the model first can tell only from the ``data``, inputs and labels; without them it is taken for an
    ordinary one.
    """
    chosen = suite(suite_name)
    if chosen.settles and data is not None:
        check_images(data[0], within.low, within.high)
        check_labels(data[1], len(data[0]))
        x, y = data[0].clamp(within.low, within.high), data[1].long().to(data[0].device)
        _, randomised, switchable = _look(model, x, y, seed)
        judge = Judge(model, y, randomised, seed, switchable)
        entries = _entries(chosen, judge, within, origin, probe(judge, x, within, seed))
    else:
        randomised = is_random(model)
        entries = chosen.fitting(model, randomised, within, origin)
    again = len(efforts(entries, randomised)) if chosen.settles else 0
    return len(entries) + (len(_radii(curve, within)) - 1) * sum(entry.curve for entry in entries) + again


def _entries(chosen: Suite, judge: Judge, within: ThreatSet, origin: bool, seen: Probe | None) -> tuple[Entry, ...]:
    """Return the attacks for a model; none is transferred from a mean network that there is not."""
    entries = chosen.fitting(judge.model, judge.randomised, within, origin, seen)
    if judge.randomised and not judge.switchable:
        return tuple(entry for entry in entries if entry.kind != "transfer")
    return entries


def _look(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[int, bool, bool]:
    with undisturbed(model, seed), torch.no_grad():
        try:
            logits = model(x[:2])
        except RuntimeError as problem:
            raise InputError(f"the model does not run on inputs of shape {list(x.shape)}: {problem}.") from problem
        try:
            model(x[:1])
        except (RuntimeError, ValueError) as problem:
            raise InputError(
                f"the model runs on two inputs together but not on one alone ({problem}); it takes statistics of the batch. "
                "Give its batch normalisation running statistics, so that an answer depends on its own input."
            ) from problem
        check_logits(logits, len(x[:2]))
        check_labels(y, len(x), logits.shape[1])
        if not torch.isfinite(logits).all():
            raise InputError("the model's logits are NaN or infinite on the first inputs; its weights are damaged.")
        randomised = is_random(model) or not torch.equal(logits, model(x[:2]))
        with noise(model, "off"):
            return logits.shape[1], randomised, torch.equal(model(x[:2]), model(x[:2]))


def _radii(curve: Sequence[float | str], within: ThreatSet) -> list[float]:
    return sorted({eps for eps in map(parse_number, curve) if eps > 0} | {within.size})
