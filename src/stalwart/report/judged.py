"""``stalwart.evaluate``: from a model and data to a report in one call."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from stalwart.core.errors import InputError
from stalwart.core.numbers import require
from stalwart.core.progress import progress
from stalwart.data import Split
from stalwart.evaluation import evaluate as run_suite
from stalwart.evaluation import steps_of
from stalwart.evaluation.hardware import measure, steps
from stalwart.evaluation.suites import suite as find_suite
from stalwart.report.certificates import certify as certify_samples
from stalwart.report.environment import environment
from stalwart.report.schema import Report, RunReport
from stalwart.report.spikes import watch_spikes
from stalwart.sets import ThreatSet
from stalwart.stochastic.rules import Rule

Labelled = tuple[Tensor, Tensor] | Split | Iterable[tuple[Tensor, Tensor]]


def evaluate(
    model: nn.Module,
    data: Labelled,
    within: ThreatSet,
    suite: str = "standard",
    seed: int = 0,
    rule: Rule = "single",
    curve: Sequence[float | str] = (),
    name: str = "model",
    show_progress: bool = False,
    certify: Sequence[str] = (),
    strategy: str = "adaptive",
    chips: int | None = None,
) -> Report:
    """Attack ``model`` with a whole suite, certify it if asked to, and return the report.

    Args:
        model: maps [B, ...] to logits [B, K], deterministic or not; left exactly as it was.
        data: inputs [N, ...] in data units with labels [N], as a pair of tensors, a split, or batches from a loader.
        within: the threat set, with one radius for all samples.
        suite: "quick", "standard", "adaptive" or another that `stalwart list suites` shows.
        seed: root of all randomness.
        rule: decision rule of a randomised model behind the headline numbers.
        curve: further radii for the accuracy curve.
        name: what the report calls the model.
        show_progress: show a progress bar.
        certify: bounding methods, and perhaps "branch-and-bound", to prove robustness by, on all the data.
        strategy: lines of piecewise-linear functions in bounds, "tight" for certifiably trained networks.
        chips: of each imperfect processor; by default what the suite measures, 25 of "hardware" and none of others.

    Raises:
        InputError: no data, NaN, values out of range, wrong shapes, labels that do not exist.
        UsageError: an unknown suite or a threat set with one radius a sample.

    Example:
        >>> import torch, stalwart as sw
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> data = torch.rand(8, 1, 2, 2), torch.arange(8) % 3
        >>> report = sw.evaluate(model, data, within=sw.Linf(0.1), suite="quick")
        >>> report.runs[0].evaluation.worst.total
        8
    """
    x, y = _gather(data)
    total = steps_of(suite, model, curve, within, data=(x, y), seed=seed)
    with progress(f"evaluating {name}", total, show_progress) as advance:
        evaluation, table = run_suite(model, x, y, within, suite, seed, rule, curve, advance=advance)
    count = find_suite(suite).chips if chips is None else chips
    require(count >= 0, f"chips must be at least 0, got {count}.")
    hardware = None
    if count:
        with progress(f"chips of {name}", steps(model), show_progress) as advance:
            hardware = measure(model, x, y, seed, count, advance)
    certificates = None
    if certify:
        certificates = certify_samples(model, x, y, within, evaluation, table, certify, strategy, seed=seed)
    run = RunReport(
        name=name,
        evaluation=evaluation,
        environment=environment(),
        certificates=certificates,
        hardware=hardware,
        spikes=watch_spikes(model, x, y, seed, within if suite in ("spiking", "adaptive") else None),
    )
    return Report(runs=[run], title=f"Robustness of {name}")


def _gather(data: Labelled) -> tuple[Tensor, Tensor]:
    if isinstance(data, Split):
        return data.batch(slice(None))
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor) and isinstance(data[1], Tensor):
        return data[0], data[1]
    batches: list[tuple[Tensor, Tensor]] = [(x, y) for x, y in data]
    if not batches:
        raise InputError("the data is empty; give inputs [N, ...] and labels [N], or a loader of such batches.")
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
