"""Randomised smoothing over a data set: one line a sample, resumable, and the summary that papers report."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.special import betaincinv
from torch import Tensor, nn

from stalwart.certify.smoothing import ABSTAIN, Certificate, Smoothing
from stalwart.core.checks import check_images, check_labels
from stalwart.core.errors import FileError, UsageError
from stalwart.core.files import read_bytes, require_writable, write_json, write_text
from stalwart.core.numbers import parse_number, require
from stalwart.core.progress import Advance, silent

RADII = tuple(step / 4 for step in range(11))
"""The radii of the literature's tables: 0, 0.25, ..., 2.5."""

SAMPLES, SUMMARY = "smoothing.jsonl", "smoothing.json"
"""The files that :func:`certify_dataset` writes."""

_KEYS = {"index", "label", *Certificate._fields}
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class CertifiedPoint:
    """Certified accuracy at one ℓ2 radius.

    Attributes:
        radius: every point at most this far away is classified rightly.
        certified: samples with the right class and a certificate beyond the radius.
        total: samples.
        value: certified / total.
        low, high: 95 % interval of Clopper and Pearson for the choice of the test inputs. ``low`` is smaller by
            alpha, the share of certificates that may be false, so that it also bounds the share that is truly robust.
    """

    radius: float
    certified: int
    total: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SmoothSummary:
    """What a certified data set comes to.

    Attributes:
        sigma, n0, n, alpha, seed: how it was certified.
        samples: test inputs; ``right + wrong + abstained``.
        right, wrong, abstained: proved to be of the labelled class, proved to be of another one, nothing proved.
        acr: average certified radius, the mean of R * [right].
        acr_low, acr_high: its 95 % interval for the choice of the test inputs, by the normal approximation.
        largest_radius: the most that n draws can certify; a curve that ends there is cut by n, not by the model.
        curve: certified accuracy by radius.
    """

    sigma: float
    n0: int
    n: int
    alpha: float
    seed: int
    samples: int
    right: int
    wrong: int
    abstained: int
    acr: float
    acr_low: float
    acr_high: float
    largest_radius: float
    curve: tuple[CertifiedPoint, ...]


def certify_dataset(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    smoothing: Smoothing,
    folder: Path | str,
    seed: int = 0,
    radii: Sequence[float | int | str] = RADII,
    advance: Advance = silent,
) -> SmoothSummary:
    """Certify every sample; what the folder holds already is kept, and the result is that of one undisturbed run.

    ``smoothing.jsonl`` gets a first line that says what is certified and then one line a sample, on the disk before the next
    sample begins; ``smoothing.json`` gets the summary. The noise of sample i derives from the seed and i alone (and from
    the kind of device: a run that goes on elsewhere is as valid, but not the same to the byte).

    Args:
        model: as for :meth:`Smoothing.certify`.
        x: inputs [N, ...] in [0, 1].
        y: labels [N].
        smoothing: how to certify.
        folder: where the two files go; created if needed.
        seed: root of all noise.
        radii: where to read the curve; floats or strings such as "128/255".
        advance: called with the number of finished samples.

    Raises:
        InputError, UsageError: as for :meth:`Smoothing.certify`; or labels that do not fit.
        UsageError: the folder holds certificates of another model, other data or other settings; a negative radius.
        FileError: the folder cannot be written, or its file is damaged before its last line.
    """
    check_images(x)
    check_labels(y, len(x))
    wanted = [parse_number(radius) for radius in radii]
    _require_radii(wanted)
    path = require_writable(folder) / SAMPLES
    head = _head(model, x, y, smoothing, seed)
    rows = _resume(path, head)
    if len(rows) < len(x):
        with smoothing.certifier(model, x, seed) as certify_one:
            for number in range(len(rows), len(x)):
                found = certify_one(x[number], number)
                rows.append({"index": number, "label": int(y[number]), **found._asdict()})
                _append(path, rows[-1])
                advance(len(rows), f"radius {found.radius:.3f}" if found.prediction != ABSTAIN else "abstained")
    summary = _summary(rows, smoothing, seed, wanted)
    write_json(Path(folder) / SUMMARY, dataclasses.asdict(summary))
    return summary


def certified_accuracy_curve(
    radius: Tensor, right: Tensor, radii: Sequence[float], alpha: float
) -> tuple[CertifiedPoint, ...]:
    """Return certified accuracy at each radius r: the share of samples that are right and have R > r.

    The theorem covers the open ball of radius R, so R > r makes the closed ball of radius r safe; at r = 0 what counts is to
    be right and not to abstain.

    Args:
        radius: certified radii R [N], 0 where nothing was proved.
        right: whether the proved class is the label, [N] bool.
        radii: where to read the curve, at least 0.
        alpha: probability that one certificate is false; it lowers the lower end of the intervals.

    Raises:
        UsageError: a negative radius, or no samples.
    """
    require(len(radius) > 0, "there are no samples to draw a curve of.")
    _require_radii(radii)
    total, points = len(radius), []
    for r in radii:
        count = int((right & (radius > r)).sum())
        low = float(betaincinv(count, total - count + 1, 0.025)) if count else 0.0
        high = float(betaincinv(count + 1, total - count, 0.975)) if count < total else 1.0
        points.append(CertifiedPoint(float(r), count, total, count / total, max(0.0, low - alpha), high))
    return tuple(points)


def _require_radii(radii: Sequence[float]) -> None:
    require(all(r >= 0 for r in radii), f"radii must be at least 0, got {min(radii, default=0.0)}.")


def _summary(rows: list[dict[str, Any]], smoothing: Smoothing, seed: int, radii: Sequence[float]) -> SmoothSummary:
    radius = torch.tensor([row["radius"] for row in rows], dtype=torch.float64)
    right = torch.tensor([row["prediction"] == row["label"] for row in rows])
    abstained = sum(row["prediction"] == ABSTAIN for row in rows)
    earned = radius * right
    mean, total = float(earned.mean()), len(rows)
    # One sample says nothing of the spread: anything is possible.
    half = _Z95 * float(earned.std()) / total**0.5 if total > 1 else smoothing.largest_radius
    return SmoothSummary(
        sigma=smoothing.sigma,
        n0=smoothing.n0,
        n=smoothing.n,
        alpha=smoothing.alpha,
        seed=seed,
        samples=total,
        right=int(right.sum()),
        wrong=total - abstained - int(right.sum()),
        abstained=abstained,
        acr=mean,
        acr_low=max(0.0, mean - half),
        acr_high=min(smoothing.largest_radius, mean + half),
        largest_radius=smoothing.largest_radius,
        curve=certified_accuracy_curve(radius, right, radii, smoothing.alpha),
    )


def _head(model: nn.Module, x: Tensor, y: Tensor, smoothing: Smoothing, seed: int) -> dict[str, Any]:
    """Return what a file of certificates is about; the batch size is not part of it, since it changes no draw."""
    settings = dataclasses.asdict(smoothing)
    del settings["batch"]
    digest = hashlib.sha256(type(model).__qualname__.encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers(), ("x", x), ("y", y)]:
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return {"kind": "smoothing", **settings, "seed": seed, "samples": len(x), "sha256": digest.hexdigest()}


def _append(path: Path, row: dict[str, Any]) -> None:
    try:
        with path.open("ab") as stream:
            stream.write(json.dumps(row).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as problem:
        raise FileError(
            f"cannot write {path}: {problem.strerror or problem}. Certificates found so far are kept; run again to go on."
        ) from problem


def _resume(path: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows a file holds, and cut off what a kill left of its last line; a new file gets its first line."""
    content = read_bytes(path, "certificates") if path.exists() else b""
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
                f"certificates {path} are damaged in line {number + 1} ({problem}); delete the file or restore it."
            ) from None
        if number == 0 and row != head:
            raise UsageError(
                f"{path} holds certificates of another model, other data or other settings; choose another folder, or "
                "delete the file to start afresh."
            )
        if number and not (isinstance(row, dict) and row.keys() == _KEYS and row["index"] == number - 1):
            raise FileError(f"certificates {path} lack sample {number - 1}; delete the file or restore it.")
        rows.append(row)
    if len(rows) - 1 > head["samples"]:
        raise FileError(f"certificates {path} hold more than {head['samples']} samples; delete the file or restore it.")
    if torn:
        with path.open("r+b") as stream:
            stream.truncate(len(content) - len(torn))
            os.fsync(stream.fileno())
    return rows[1:]
