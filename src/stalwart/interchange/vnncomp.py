"""VNN-COMP's other files: lists of instances, results, counterexamples."""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from stalwart.core.errors import InputError, UsageError
from stalwart.core.files import write_text
from stalwart.core.registry import suggest
from stalwart.interchange.files import read_text
from stalwart.interchange.s_expressions import Expression, error, parse

_MOST_BYTES = 2**28

VERDICTS = {"verified": "unsat", "falsified": "sat", "unknown": "unknown", "timeout": "timeout"}
"""What VNN-COMP calls each verdict: its question is whether a counterexample exists."""


@dataclass(frozen=True)
class Instance:
    """One line of ``instances.csv``: a network, a property and the seconds allowed."""

    onnx: Path
    vnnlib: Path
    timeout: float


def read_instances(path: Path | str) -> tuple[Instance, ...]:
    """Read ``instances.csv``: lines of onnx, vnnlib, timeout in seconds, without a header; files relative to its folder.

    Raises:
        FileError: missing or not text.
        InputError: a line with other than three fields, or whose timeout is not a positive number.
    """
    folder, found = Path(path).parent, []
    reader = csv.reader(io.StringIO(read_text(path, "instance list", _MOST_BYTES)))
    for row in reader:
        if not row:
            continue
        where = f"{path}, line {reader.line_num}"
        if len(row) != 3 or not all(field.strip() for field in row):
            raise InputError(f"{where}: found {len(row)} fields, expected onnx,vnnlib,timeout.")
        onnx, vnnlib, seconds = (field.strip() for field in row)
        try:
            timeout = float(seconds)
        except ValueError:
            timeout = math.nan
        if not 0 < timeout < math.inf:
            raise InputError(f"{where}: the timeout {seconds!r} is not a positive number of seconds.")
        found.append(Instance(folder / onnx, folder / vnnlib, timeout))
    return tuple(found)


def write_result(
    path: Path | str,
    status: str,
    x: Float[Tensor, " *shape"] | None = None,
    y: Float[Tensor, " outputs"] | None = None,
) -> None:
    """Write the result file of one instance, atomically: the verdict, and after ``sat`` the counterexample.

    Args:
        path: the file.
        status: "verified", "falsified", "unknown" or "timeout", written as "unsat", "sat", "unknown" or "timeout".
        x: the counterexample, one input of any shape; needed if falsified. Numbers are written so that they read back as
            the same ones.
        y: the network's output for it [K], best taken from onnxruntime.

    Raises:
        UsageError: another status, or a counterexample that is missing, superfluous or not finite.
        FileError: the file cannot be written.
    """
    if status not in VERDICTS:
        raise UsageError(f"unknown verdict '{status}'.{suggest(status, VERDICTS)} Known: {', '.join(VERDICTS)}.")
    if status != "falsified":
        if x is not None or y is not None:
            raise UsageError(f"a counterexample belongs to the verdict 'falsified', not to '{status}'.")
        write_text(path, f"{VERDICTS[status]}\n")
        return
    if x is None or y is None or not (x.isfinite().all() and y.isfinite().all()):
        raise UsageError("the verdict 'falsified' needs a finite input x and its output y.")
    lines = [
        f"({name}_{at} {value!r})"
        for name, values in (("X", x), ("Y", y))
        for at, value in enumerate(values.double().flatten().tolist())
    ]
    write_text(path, f"{VERDICTS[status]}\n({chr(10).join(lines)})\n")


def read_counterexample(path: Path | str) -> tuple[Float64[Tensor, " inputs"], Float64[Tensor, " outputs"]]:
    """Read a counterexample: ``((X_0 0.1) ... (Y_0 2.5) ...)``, plain or gzip, with or without ``sat`` before it.

    Returns:
        The inputs [n] and the outputs [K] as the file gives them; [0] if it gives none.

    Raises:
        FileError: missing, truncated or not text.
        InputError: it holds anything else, or numbers out of order; with line and column.
    """
    parts = parse(read_text(path, "counterexample", _MOST_BYTES), path)
    if parts and parts[0].text == "sat":
        parts = parts[1:]
    if len(parts) != 1 or parts[0].text:
        raise InputError(f"{path}: found {len(parts)} expressions, expected one list ((X_0 ...) ... (Y_0 ...) ...).")
    values: dict[str, list[float]] = {"X": [], "Y": []}
    for part in parts[0].items:
        kind, value = _assignment(part, values, path)
        values[kind].append(value)
    return torch.tensor(values["X"], dtype=torch.float64), torch.tensor(values["Y"], dtype=torch.float64)


def _assignment(part: Expression, values: dict[str, list[float]], path: Path | str) -> tuple[str, float]:
    """Return one (NAME NUMBER); the names of each kind must come in order."""
    names = [f"{kind}_{len(known)}" for kind, known in values.items()]
    texts = [item.text for item in part.items]
    try:
        value = float(texts[1])
        if len(texts) != 2 or texts[0] not in names or not math.isfinite(value):
            raise ValueError
    except (ValueError, IndexError):
        raise error(path, part.line, part.column, f"'{part}'", f"({names[0]} NUMBER) or ({names[1]} NUMBER)") from None
    return texts[0][0], value
