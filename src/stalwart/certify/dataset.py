"""Certified accuracy of a data set: cheap bounds first, in batches; complete verification for what they leave open."""

import copy
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.bounds.methods import find_method, finish, margin_rows, propagate
from stalwart.certify.problem import proven
from stalwart.certify.verify import robustness_property, verify
from stalwart.core.checks import check_images, check_labels
from stalwart.core.errors import FileError, UsageError
from stalwart.core.files import read_bytes, require_writable, write_json, write_text
from stalwart.core.numbers import require
from stalwart.core.progress import Advance, silent
from stalwart.graph import trace
from stalwart.sets import Linf, ThreatSet

SAMPLES, SUMMARY = "verified.jsonl", "verified.json"
"""The files that :func:`certify_dataset` writes."""

COMPLETE = "branch-and-bound"
METHODS = ("ibp", "crown-ibp", "crown", COMPLETE)
"""In increasing cost; the last one is :func:`stalwart.certify.verify.verify`."""

_KEYS = {"index", "label", "status", "method", "bound", "seconds", "domains"}
_BATCH = 32


@dataclass(frozen=True)
class VerifiedSummary:
    """What a verified data set comes to; the first five add up to ``samples``.

    Attributes:
        samples: inputs.
        verified: proven to keep their label over the whole set.
        falsified: classified rightly, but an input in the set is not.
        wrong: classified wrongly, or tied, as they are.
        unknown, timeout: neither proved nor disproved.
        clean, certified, attacked: shares: of right answers, of proofs, and of samples without a counterexample. The robust
            accuracy lies between the last two.
        methods: how many samples each method settled.
        seconds: the time all samples took together.
    """

    samples: int
    verified: int
    falsified: int
    wrong: int
    unknown: int
    timeout: int
    clean: float
    certified: float
    attacked: float
    methods: dict[str, int]
    seconds: float


def certify_dataset(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    within: ThreatSet,
    timeout: float | int,
    folder: Path | str,
    methods: Sequence[str] = METHODS,
    seed: int = 0,
    advance: Advance = silent,
) -> VerifiedSummary:
    """Verify every sample; what the folder holds already is kept, so that a killed run goes on where it stopped.

    ``verified.jsonl`` gets a first line that says what is verified and then one line a sample, in order; ``verified.json``
    gets the summary. All bounds are computed in float64.

    Args:
        model: maps [B, ...] to logits [B, K].
        x: inputs [N, ...] in data units.
        y: labels [N].
        within: the box around each input.
        timeout: seconds for the complete verification of one sample, above 0.
        folder: where the two files go; created if needed.
        methods: bounding methods in the order to try, the last one perhaps "branch-and-bound".
        seed: root of the attacks' random starts.
        advance: called with the number of finished samples.

    Raises:
        InputError: inputs out of range, labels that do not fit, an operator without a rule.
        UsageError: an unknown method, a threat set that is no box, or a folder with results of another model or other settings.
        FileError: the folder cannot be written, or its file is damaged before its last line.
    """
    require(isinstance(within, Linf), f"complete verification takes boxes only; {type(within).__name__} is none.")
    require(timeout > 0, f"timeout must be above 0 seconds, got {timeout}.")
    for name in methods:
        if name != COMPLETE:
            find_method(name)
    check_images(x, within.low, within.high)
    check_labels(y, len(x))
    path = require_writable(folder) / SAMPLES
    double = copy.deepcopy(model).double().eval().requires_grad_(False)
    program = trace(double, x[:1].double()).describe()
    rows = _resume(path, _head(model, program, x, y, within, methods, timeout, seed))
    if len(rows) < len(x):
        for begun in range(len(rows), len(x), _BATCH):
            batch = torch.arange(begun, min(begun + _BATCH, len(x)))
            for row in _certified(double, x[batch], y[batch], begun, _part(within, batch), timeout, methods, seed):
                rows.append(row)
                _append(path, row)
                advance(len(rows), row["status"])
    summary = _summary(rows)
    write_json(Path(folder) / SUMMARY, vars(summary))
    return summary


def statuses(folder: Path | str) -> list[str]:
    """Return the verdicts that :func:`certify_dataset` left in a folder, in the order of the inputs."""
    lines = read_bytes(Path(folder) / SAMPLES, "verdicts").splitlines()[1:]
    return [json.loads(line)["status"] for line in lines]


def _certified(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    first: int,
    within: ThreatSet,
    timeout: float | int,
    methods: Sequence[str],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one batch in order: what cheap methods settle together, the rest one by one."""
    begun = time.monotonic()
    with torch.no_grad():
        logits = model(x.double())
    classes = logits.shape[1]
    check_labels(y, len(x), classes)
    margins = (logits.gather(1, y[:, None]) - logits.scatter(1, y[:, None], -torch.inf)).amin(1)
    settled = ["" if margin > 0 else "clean" for margin in margins.tolist()]
    bound = margins.clone()
    for name in methods:
        left = torch.tensor([at for at, by in enumerate(settled) if not by])
        if name == COMPLETE or not len(left):
            continue
        found = _bounded(model, x[left].double(), y[left], within.select(left), name)
        bound[left] = found
        for at, sure in zip(left.tolist(), proven(found).tolist(), strict=True):
            settled[at] = name if sure else ""
    shared = (time.monotonic() - begun) / len(x)
    for at, by in enumerate(settled):
        row = {"index": first + at, "label": int(y[at]), "status": "unknown", "method": by, "domains": 0}
        row |= {"bound": _number(bound[at]), "seconds": shared}
        if by == "clean":
            row["status"] = "wrong"
        elif by:
            row["status"] = "verified"
        elif COMPLETE in methods:
            prop = robustness_property(x[at], int(y[at]), within.select(torch.tensor([at])), classes)
            verdict = verify(model, prop, timeout, seed + first + at, input_shape=tuple(x.shape[1:]))
            row |= {"status": verdict.status, "method": COMPLETE, "domains": verdict.domains}
            row |= {"bound": _number(verdict.bound), "seconds": shared + verdict.seconds}
        yield row


def _part(within: ThreatSet, index: Tensor) -> Linf:
    part = within.select(index)
    assert isinstance(part, Linf)
    return part


def _bounded(model: nn.Module, x: Tensor, y: Tensor, within: ThreatSet, name: str) -> Tensor:
    with torch.no_grad():
        known = propagate(model, x, within, name)
        spec = margin_rows(y, known.graph.output.shape[0]).to(x)
        return finish(known, spec, find_method(name)).amin(1)


def _number(value: Tensor | float) -> float | None:
    """Return a float that JSON can hold, None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None


def _summary(rows: list[dict[str, Any]]) -> VerifiedSummary:
    count = {name: sum(row["status"] == name for row in rows) for name in ("verified", "falsified", "wrong", "unknown")}
    late, total = sum(row["status"] == "timeout" for row in rows), len(rows)
    settled = [row["method"] for row in rows if row["status"] in ("verified", "falsified")]
    return VerifiedSummary(
        total,
        **count,
        timeout=late,
        clean=1 - count["wrong"] / total,
        certified=count["verified"] / total,
        attacked=1 - (count["wrong"] + count["falsified"]) / total,
        methods={name: settled.count(name) for name in dict.fromkeys(settled)},
        seconds=sum(row["seconds"] for row in rows),
    )


def _head(
    model: nn.Module,
    program: list[str],
    x: Tensor,
    y: Tensor,
    within: ThreatSet,
    methods: Sequence[str],
    timeout: float | int,
    seed: int,
) -> dict[str, Any]:
    digest = hashlib.sha256("\n".join([type(model).__qualname__, *program, ""]).encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers(), ("x", x), ("y", y)]:
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    eps = within.radius.tolist() if isinstance(within.radius, Tensor) else within.radius
    settings: dict[str, Any] = {"within": within.describe(), "low": within.low, "high": within.high, "eps": eps}
    settings |= {"methods": list(methods), "timeout": timeout, "seed": seed}
    return {"kind": "verified", **settings, "samples": len(x), "sha256": digest.hexdigest()}


def _append(path: Path, row: dict[str, Any]) -> None:
    try:
        with path.open("ab") as stream:
            stream.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as problem:
        raise FileError(
            f"cannot write {path}: {problem.strerror or problem}. Verdicts found so far are kept; run again to go on."
        ) from problem


def _resume(path: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows a file holds, and cut off what a kill left of its last line; a new file gets its first line."""
    content = read_bytes(path, "verdicts") if path.exists() else b""
    *lines, torn = content.split(b"\n")
    if not lines:
        write_text(path, json.dumps(head) + "\n")
        return []
    rows = []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError as problem:
            raise FileError(
                f"verdicts {path} are damaged in line {number + 1} ({problem}); delete the file or restore it."
            ) from None
        if number == 0 and row != head:
            raise UsageError(
                f"{path} holds verdicts on another model, other data or other settings; choose another folder, or delete "
                "the file to start afresh."
            )
        if number and not (isinstance(row, dict) and row.keys() == _KEYS and row["index"] == number - 1):
            raise FileError(f"verdicts {path} lack sample {number - 1}; delete the file or restore it.")
        rows.append(row)
    if torn:
        with path.open("r+b") as stream:
            stream.truncate(len(content) - len(torn))
            os.fsync(stream.fileno())
    return rows[1:]
