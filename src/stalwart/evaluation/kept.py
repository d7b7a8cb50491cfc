"""What attacks have found so far, on disk: an evaluation that was killed goes on with the attack that it was at."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from stalwart.attacks import AttackResult
from stalwart.attacks.base import Cost
from stalwart.core.errors import FileError
from stalwart.core.tensors import load_tensors, save_tensors


@dataclass(frozen=True)
class Kept:
    """Results of attacks in a folder, one file each, of one evaluation alone.

    Attributes:
        folder: where they are; None keeps nothing.
        fingerprint: of the evaluation; what another one left is overwritten.
    """

    folder: Path | None
    fingerprint: str = ""

    def read(self, name: str, device: torch.device) -> AttackResult | None:
        """Return what the attack of this name found, if this evaluation has run it."""
        path = self._path(name)
        if path is None or not path.exists():
            return None
        try:
            found, meta = load_tensors(path, "an attack's result")
            if meta != self.fingerprint:
                return None
            x_adv, success, margin = (found[one].to(device) for one in ("x_adv", "success", "margin"))
            distance = found["distance"].to(device) if "distance" in found else None
            return AttackResult(x_adv, success, margin, Cost(found["forwards"], found["backwards"]), distance)
        except (FileError, KeyError):
            return None  # a damaged result is found again

    def write(self, name: str, result: AttackResult) -> None:
        """Keep what the attack of this name found."""
        path = self._path(name)
        if path is not None:
            found = {"x_adv": result.x_adv, "success": result.success, "margin": result.margin}
            costs = {"forwards": result.cost.forwards, "backwards": result.cost.backwards}
            distance = {} if result.distance is None else {"distance": result.distance}
            save_tensors(path, found | costs | distance, self.fingerprint)

    def clear(self) -> None:
        """Delete all results: the evaluation is done."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name.replace('/', '-')}.safetensors"
