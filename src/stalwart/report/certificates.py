"""Certificates in the report: certified accuracy beside the attacked one, and the check that their order is right."""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stalwart.certify.dataset import COMPLETE
from stalwart.certify.proofs import MethodProofs, prove, undecided_note
from stalwart.core.errors import UsageError
from stalwart.core.progress import Advance, silent
from stalwart.evaluation import Samples
from stalwart.evaluation.results import Evaluation, Flag, Rate, Record
from stalwart.sets import ThreatSet

_BEST = "certified"


class CertifiedRow(Record):
    """What one method proves at the main radius; no rate if it was refused, for the reason in ``note``."""

    method: str
    certified: Rate | None
    seconds: float
    note: str = ""


class CertifiedPoint(Record):
    """The share of samples that some method proves at one radius, and what the attacks left of the same samples."""

    eps: float
    certified: Rate
    attacked: Rate


class NeuronStatus(Record):
    """The shares of one activation layer's neurons that are "dead", "unstable", "alive", "right-unstable", "right-dead"."""

    layer: str
    neurons: int
    shares: dict[str, float]


class Certificates(Record):
    """What is proven of a run, on the first ``samples`` inputs of its evaluation.

    Attributes:
        samples: inputs that were certified.
        strategy: how lines of piecewise-linear functions were chosen; empty if no bounding method ran.
        methods: each method at the evaluation's radius.
        best: inputs that at least one method proves.
        clean, attacked: accuracy on the same inputs, and what the attacks left of them.
        curve: ``best`` and ``attacked`` by radius; complete verification runs at the evaluation's radius only.
        neurons: the activations' states by interval bounds at the evaluation's radius.
        order: the check certified <= worst attack <= clean, sample by sample and at every radius.
    """

    samples: int
    strategy: str
    methods: list[CertifiedRow]
    best: Rate
    clean: Rate
    attacked: Rate
    curve: list[CertifiedPoint]
    neurons: list[NeuronStatus]
    order: Flag
    seconds: float


def certify(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    within: ThreatSet,
    evaluation: Evaluation,
    table: Samples,
    methods: Sequence[str],
    strategy: str = "tight",
    timeout: float | int = 10.0,
    seed: int = 0,
    advance: Advance = silent,
) -> Certificates:
    """Certify the first inputs of an evaluation at its radius and those of its curve, and hold the proofs against the attacks.

    Args:
        model: the model that was evaluated.
        x: the first inputs of the evaluation, as many as are to be certified.
        y: their labels.
        within: the evaluation's threat set.
        evaluation: what the attacks left.
        table: its per-sample results; gets a column ``certified-METHOD`` a method, ``certified`` for the best of them and
            ``certified@RADIUS`` at the curve's other radii, empty for inputs that were not certified.
        methods, strategy, timeout, seed, advance: as for :func:`stalwart.certify.proofs.prove`.
    """
    begun = time.monotonic()
    radii = [point.eps for point in evaluation.curve if point.eps > 0]
    broken = ~_get(table, "worst")[: len(x)]
    found = prove(model, x, y, within, methods, radii, strategy, timeout, seed, broken, advance)
    for row in found.methods:
        if row.certified is not None:
            _put(table, f"{_BEST}-{row.method}", row.certified)
    for eps, certified in found.curve.items():
        _put(table, _column(evaluation, eps), certified)
    neurons = [
        NeuronStatus(
            layer=one.layer,
            neurons=one.neurons,
            shares={state: count / (one.neurons * len(x)) for state, count in one.counts.items()},
        )
        for one in found.layers
    ]
    rows = [_row(one) for one in found.methods]
    return _judged(evaluation, table, rows, neurons, strategy, time.monotonic() - begun)


def with_verdicts(
    held: Certificates | None,
    evaluation: Evaluation,
    table: Samples,
    statuses: Sequence[str],
    seconds: float,
    timeout: float | int,
) -> Certificates:
    """Return certificates with the verdicts of a complete verification at the evaluation's radius.

    Args:
        held: what the report holds so far; its row of complete verification is replaced.
        evaluation: what the attacks left.
        table: its per-sample results, which get the new columns.
        statuses: the verdicts on the first inputs: "verified", "falsified", "wrong", "unknown" or "timeout".
        seconds: the time they took together.
        timeout: seconds for one of them.
    """
    statuses = statuses[: len(table.columns["index"])]
    verified = torch.tensor([status == "verified" for status in statuses], dtype=torch.bool)
    _put(table, f"{_BEST}-{COMPLETE}", verified)
    best = [name for name in table.columns if name.startswith(f"{_BEST}-")]
    _put(table, _BEST, _either([_get(table, name) for name in best]))
    for point in held.curve if held else []:
        if point.eps < evaluation.eps:
            name = _column(evaluation, point.eps)
            _put(table, name, _either([_get(table, name), _get(table, _BEST)]))
    kept = [row for row in held.methods if row.method != COMPLETE] if held else []
    new = MethodProofs(COMPLETE, verified, seconds, undecided_note(statuses, timeout))
    before = held.seconds if held else 0.0
    strategy = held.strategy if held else ""
    return _judged(evaluation, table, [*kept, _row(new)], held.neurons if held else [], strategy, before + seconds)


def order_flag(evaluation: Evaluation, table: Samples) -> Flag:
    """Check, sample by sample and at every certified radius, that no attack and no clean answer contradicts a proof."""
    clean = _get(table, "clean")
    proven, broken, radii = torch.zeros_like(clean), torch.zeros_like(clean), 0
    for eps in _radii(evaluation, table):
        here = _get(table, _column(evaluation, eps))
        survived = _survived(evaluation, table, eps)[: len(here)]
        proven[: len(here)] |= here
        broken[: len(here)] |= here & ~survived & clean[: len(here)]
        radii += 1
    attacked, wrong = int(broken.sum()), int((proven & ~clean).sum())
    return Flag(
        code="order",
        title="A proof is contradicted",
        fired=attacked + wrong > 0,
        explanation="What is proven cannot be broken, and what is broken cannot be proven. An input that is "
        "proven robust and yet broken or misclassified shows an error in the bounds or in the attack, or a report made with "
        "other weights: neither number can be used.",
        evidence=f"of {int(proven.sum())} inputs with a proof at {'the radius' if radii == 1 else f'one of {radii} radii'}, "
        f"attacks broke {attacked} inside the proven set, and {wrong} are classified wrongly as they are.",
    )


def _judged(
    evaluation: Evaluation,
    table: Samples,
    rows: list[CertifiedRow],
    neurons: list[NeuronStatus],
    strategy: str,
    seconds: float,
) -> Certificates:
    best = _get(table, _BEST)
    curve = []
    for eps in _radii(evaluation, table):
        proven = _get(table, _column(evaluation, eps))
        survived = _survived(evaluation, table, eps)[: len(proven)]
        curve.append(CertifiedPoint(eps=eps, certified=_rate(proven), attacked=_rate(survived)))
    return Certificates(
        samples=len(best),
        strategy=strategy,
        methods=rows,
        best=_rate(best),
        clean=_rate(_get(table, "clean")[: len(best)]),
        attacked=_rate(_get(table, "worst")[: len(best)]),
        curve=curve,
        neurons=neurons,
        order=order_flag(evaluation, table),
        seconds=seconds,
    )


def _radii(evaluation: Evaluation, table: Samples) -> list[float]:
    """Return the radii that something was certified at."""
    known = sorted({evaluation.eps, *(point.eps for point in evaluation.curve)})
    return [eps for eps in known if _column(evaluation, eps) in table.columns]


def _survived(evaluation: Evaluation, table: Samples, eps: float) -> Tensor:
    """Return which samples no attack of radius eps or less broke, as the table tells."""
    names = {"clean"} | ({"worst"} if evaluation.eps <= eps else set())
    for row in evaluation.attacks:
        if row.eps <= eps:
            names.add(row.name if math.isclose(row.eps, evaluation.eps) else f"{row.name}@{row.eps:g}")
    return torch.stack([_get(table, name) for name in sorted(names)]).all(0)


def _column(evaluation: Evaluation, eps: float) -> str:
    return _BEST if math.isclose(eps, evaluation.eps) else f"{_BEST}@{eps:g}"


def _row(found: MethodProofs) -> CertifiedRow:
    rate = None if found.certified is None else _rate(found.certified)
    return CertifiedRow(method=found.method, certified=rate, seconds=round(found.seconds, 3), note=found.note)


def _rate(right: Tensor) -> Rate:
    return Rate.of(int(right.sum()), len(right))


def _put(table: Samples, name: str, values: Tensor) -> None:
    """Set a column for the first inputs, empty for the rest."""
    empty = len(table.columns["index"]) - len(values)
    table.columns[name] = [*values.long().tolist(), *[""] * empty]


def _get(table: Samples, name: str) -> Tensor:
    """Return a column for the inputs that it knows, bool."""
    if name not in table.columns:
        raise UsageError(f"the per-sample table has no column '{name}'; run `stalwart evaluate` again.")
    return torch.tensor([bool(int(value)) for value in table.columns[name] if value != ""], dtype=torch.bool)


def _either(columns: Sequence[Tensor]) -> Tensor:
    """Return where any of some columns of perhaps different lengths is true."""
    found = torch.zeros(max(len(column) for column in columns), dtype=torch.bool)
    for column in columns:
        found[: len(column)] |= column
    return found
