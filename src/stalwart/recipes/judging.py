"""How a run is judged: its attacks and certificates, and the report that knows where it came from."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pydantic
from torch import nn

from stalwart.core.errors import FileError, UsageError
from stalwart.core.files import read_bytes, require_writable, write_text
from stalwart.core.progress import progress
from stalwart.core.registry import lookup
from stalwart.data import Data
from stalwart.data.corruptions import require_images
from stalwart.evaluation import Samples, evaluate, steps_of
from stalwart.evaluation import corruptions as common
from stalwart.evaluation.blocks import Work, one_by_one
from stalwart.evaluation.hardware import HardwareResult, measure
from stalwart.evaluation.hardware import steps as hardware_steps
from stalwart.evaluation.suites import suite
from stalwart.recipes.runs import Source, load_run
from stalwart.recipes.schema import EvaluationSection, Recipe
from stalwart.report import (
    Certificates,
    Conversion,
    Report,
    RunReport,
    certify,
    environment,
    watch_spikes,
    with_verdicts,
)
from stalwart.sets import Linf
from stalwart.sets.table import SETS

_SPIKING = ("spiking", "snn-adaptive", "adaptive")


def evaluate_model(
    name: str,
    model: nn.Module,
    data: Data,
    section: EvaluationSection,
    seed: int,
    out: Path,
    recipe: dict[str, Any] | None = None,
    training: list[dict[str, Any]] | None = None,
    device: str = "cpu",
    origin: nn.Module | None = None,
    conversion: Conversion | None = None,
    work: Work = one_by_one,
) -> Report:
    """Attack and certify a model on the test part; write ``report.json``, ``index.html`` and ``samples.csv`` to ``out``.

    ``origin`` is the network that it was converted from, where it is at hand, and ``conversion`` what was done to it. An
    evaluation that was killed goes on with the block of inputs that it was at. ``work`` attacks blocks, perhaps in other
    processes.
    """
    require_writable(out)
    test = data.test if section.samples is None else data.test.take(section.samples)
    if not len(test):
        raise UsageError(f"dataset '{data.name}' has no test samples to evaluate on; give it a test part.")
    x, y = test.to(device).batch(slice(None))
    within = lookup("threat set", SETS, section.norm)(section.eps)
    severities = suite(section.suite).corruptions if section.corruptions is None else section.corruptions
    if severities:
        require_images(x)
    model.to(device)
    total = steps_of(section.suite, model, section.curve, within, origin is not None, (x, y), seed)
    with progress(f"evaluating {name}", total) as advance:
        evaluation, samples = evaluate(
            model,
            x,
            y,
            within,
            section.suite,
            seed,
            section.rule,
            section.curve,
            data.name,
            "test",
            data.classes,
            advance,
            origin,
            out / "attacks",
            work,
            section.batch_size,
        )
    hardware: HardwareResult | None = None
    chips = suite(section.suite).chips if section.chips is None else section.chips
    if chips:
        with progress(f"chips of {name}", hardware_steps(model)) as advance:
            hardware = measure(model, x, y, seed, chips, advance, out / "chips")
        shutil.rmtree(out / "chips", ignore_errors=True)
    corruptions: common.CorruptionsResult | None = None
    if severities:
        with progress(f"corruptions of {name}", common.steps()) as advance:
            corruptions = common.measure(model, x, y, seed, severities, evaluation.rule, advance)
    certificates: Certificates | None = None
    if section.certify is not None:
        wanted = section.certify
        count = len(x) if wanted.samples is None else min(len(x), wanted.samples)
        steps = len(wanted.methods) + len({eps for eps in section.curve if eps > 0} - {within.size})
        with progress(f"certifying {name}", steps) as advance:
            certificates = certify(
                model,
                x[:count],
                y[:count],
                within,
                evaluation,
                samples,
                wanted.methods,
                wanted.strategy,
                wanted.timeout,
                seed,
                advance,
            )
    run = RunReport(
        name=name,
        evaluation=evaluation,
        training=training or [],
        recipe=recipe,
        environment=environment(),
        certificates=certificates,
        spikes=watch_spikes(model, x, y, seed, within if section.suite in _SPIKING else None),
        hardware=hardware,
        corruptions=corruptions,
        conversion=conversion,
    )
    report = Report(runs=[run], title=f"Robustness of {name}")
    return save_report(report, samples, out)


def evaluate_run(
    folder: Path,
    source: Source,
    loaded: tuple[Recipe, nn.Module, Data],
    section: EvaluationSection,
    seed: int,
    out: Path,
    device: str = "cpu",
    work: Work = one_by_one,
) -> Report:
    """Attack and certify a finished run's model; its report knows how it was trained and converted."""
    recipe, model, data = loaded
    full = recipe.model_copy(update={"evaluation": section}).model_dump(mode="json")
    return evaluate_model(
        recipe.name,
        model,
        data,
        section,
        seed,
        out,
        full,
        metrics_of(folder),
        device,
        origin_of(recipe, folder, source),
        conversion_of(folder),
        work,
    )


def add_verdicts(folder: Path, eps: float, statuses: list[str], seconds: float, timeout: float) -> str:
    """Put the verdicts of a complete verification into the run's report, if it speaks of the same box; say what was done.

    Raises:
        FileError: the report or its per-sample table is damaged.
    """
    if not (folder / "report.json").exists():
        return f"not in a report yet: run `stalwart evaluate {folder}`, then this again"
    report, path = Report.load(folder), folder / "samples.csv"
    (run,) = report.runs
    threat, wanted = run.evaluation.threat, Linf(eps)
    if threat != wanted.describe() or not math.isclose(run.evaluation.eps, eps, rel_tol=1e-9):
        return f"not in the report, which speaks of {threat}: evaluate with --eps {eps:g} first"
    try:
        samples = Samples.parse(read_bytes(path, "the per-sample table").decode())
        found = with_verdicts(run.certificates, run.evaluation, samples, statuses, seconds, timeout)
    except ValueError as problem:
        raise FileError(
            f"{path} does not fit the report ({problem}); run `stalwart evaluate {folder}` again."
        ) from None
    new = report.model_copy(update={"runs": [run.model_copy(update={"certificates": found})]})
    save_report(new, samples, folder)
    return f"report: {folder / 'index.html'}"


def save_report(report: Report, samples: Samples, out: Path) -> Report:
    """Write the report and the per-sample table."""
    write_text(out / "samples.csv", samples.csv())
    report.save(out)
    return report


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's ``metrics.jsonl``; none if it has none.

    Raises:
        FileError: a line is not JSON.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in read_bytes(path, "metrics").decode().splitlines()]
    except ValueError as problem:
        raise FileError(f"metrics {path} are damaged ({problem}); delete the file or restore it.") from None


def conversion_of(folder: Path) -> Conversion | None:
    """Return what a run's ``conversion.json`` says; None if it has none.

    Raises:
        FileError: it is damaged.
    """
    path = folder / "conversion.json"
    if not path.exists():
        return None
    try:
        return Conversion.model_validate_json(read_bytes(path, "the conversion"))
    except pydantic.ValidationError:
        raise FileError(f"{path} is damaged; convert the network again.") from None


def origin_of(recipe: Recipe, folder: Path, source: Source) -> nn.Module | None:
    """Return the network that a run's was converted from, where its run is still there."""
    if recipe.conversion is None or not (folder / recipe.conversion.source / "model.safetensors").exists():
        return None
    return load_run((folder / recipe.conversion.source).resolve(), source)[1]
