"""What attacks have found so far: on disk, so that an evaluation which was killed goes on with the block that it was at."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from stalwart.core.errors import FileError
from stalwart.core.tensors import load_tensors, save_tensors
from stalwart.evaluation.blocks import Block, Found, pack, unpack


@dataclass(frozen=True)
class Kept:
    """What was found in the blocks of one evaluation alone, in a folder, one file each.

    Attributes:
        folder: where they are; None keeps nothing.
        fingerprint: of the evaluation; what another one left is overwritten.
    """

    folder: Path | None
    fingerprint: str = ""

    def read(self, block: Block, device: torch.device) -> Found | None:
        """Return what was found in a block, if this evaluation has attacked it."""
        path = self._path(block)
        if path is None or not path.exists():
            return None
        try:
            tensors, meta = load_tensors(path, "an attack's result")
            if not isinstance(meta, dict) or meta.get("of") != self.fingerprint or meta.get("block") != block.key:
                return None
            return unpack(tensors, float(meta["seconds"]), device)
        except (FileError, KeyError, TypeError):
            return None  # a damaged result is found again

    def write(self, block: Block, found: Found) -> None:
        """Keep what was found in a block."""
        path = self._path(block)
        if path is not None:
            tensors, seconds = pack(found)
            save_tensors(path, tensors, {"of": self.fingerprint, "block": block.key, "seconds": seconds})

    def clear(self) -> None:
        """Delete all results: the evaluation is done."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, block: Block) -> Path | None:
        return None if self.folder is None else self.folder / f"{block.name.replace('/', '-')}.safetensors"
