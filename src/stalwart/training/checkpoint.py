"""Checkpoints: everything a killed run needs, in one safetensors file that is replaced whole."""

from pathlib import Path
from typing import Any

import pydantic
from torch import Tensor

from stalwart.core.errors import FileError
from stalwart.core.tensors import load_tensors, save_tensors


class Progress(pydantic.BaseModel):
    """Where a run stands. The next batch to train on is number ``batch`` of ``epoch`` (both from 0).

    All randomness derives from the seed and these numbers, so no generator state is stored.
    """

    model_config = pydantic.ConfigDict(extra="forbid")

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss: float = 0.0
    correct: float = 0.0
    seen: float = 0.0
    seconds: float = 0.0
    best: float = -1.0
    best_epoch: int = 0
    watched: float | None = None
    stopped: str | None = None
    history: list[dict[str, Any]] = []


def path_of(run: Path) -> Path:
    """Return where a run keeps its checkpoint."""
    return run / "checkpoint" / "latest.safetensors"


def save(run: Path, parts: dict[str, dict[str, Tensor]], progress: Progress, fingerprint: str) -> None:
    """Write named groups of tensors and the progress; a kill at any moment leaves the old or the new file."""
    flat = {f"{part}:{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
    save_tensors(path_of(run), flat, {"progress": progress.model_dump(), "fingerprint": fingerprint})


def load(run: Path, fingerprint: str) -> tuple[dict[str, dict[str, Tensor]], Progress]:
    """Read what :func:`save` wrote.

    Raises:
        FileError: the file is damaged, or was written under another recipe.
    """
    path = path_of(run)
    tensors, meta = load_tensors(path, "checkpoint")
    try:
        progress, written = Progress(**meta["progress"]), meta["fingerprint"]
    except (TypeError, KeyError, pydantic.ValidationError) as problem:
        raise FileError(f"checkpoint {path} lacks the state of its run; delete it and start afresh.") from problem
    if written != fingerprint:
        raise FileError(
            f"checkpoint {path} was written under another recipe; resume with the run's own recipe, or train into "
            "a new output folder."
        )
    parts: dict[str, dict[str, Tensor]] = {}
    for flat, tensor in tensors.items():
        part, _, name = flat.partition(":")
        parts.setdefault(part, {})[name] = tensor
    if "model" not in parts:
        raise FileError(f"checkpoint {path} holds no model; delete it and start afresh.")
    return parts, progress
