"""Tensors on disk: safetensors with a checksum of their content, written whole or not at all, never unpickled."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from stalwart.core.errors import FileError
from stalwart.core.files import atomic, read_bytes

_SUM = "stalwart.sha256"
_META = "stalwart.meta"


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], meta: Any = None) -> None:
    """Write tensors and a JSON value ``meta`` to one safetensors file, atomically."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(meta)
    payload = safetensors.torch.save(plain, {_SUM: _checksum(plain, text), _META: text})
    header, data = _split(payload)
    # safetensors writes its metadata in random order; sorted, the same content gives the same bytes.
    ordered = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    ordered += b" " * (-len(ordered) % 8)
    with atomic(path) as stream:
        stream.write(len(ordered).to_bytes(8, "little") + ordered)
        stream.write(data)


def load_tensors(path: Path | str, what: str) -> tuple[dict[str, Tensor], Any]:
    """Read tensors and ``meta`` (None for files written by other tools); nothing is unpickled.

    Raises:
        FileError: the file is missing, truncated or tampered with, or its content differs from its checksum.
    """
    payload = read_bytes(path, what)
    try:
        tensors = safetensors.torch.load(payload)
        header = _split(payload)[0].get("__metadata__", {})
        text = header.get(_META, "null")
        meta = json.loads(text)
    except (safetensors.SafetensorError, ValueError, KeyError, AttributeError) as problem:
        raise FileError(
            f"{what} {path} is not a valid safetensors file ({problem}); it may be truncated or tampered with. "
            "Restore it from a copy or train again."
        ) from problem
    own = _SUM in header or _META in header  # files by other tools hold neither
    if own and header.get(_SUM) != _checksum(tensors, text):
        raise FileError(f"{what} {path} does not match its checksum: its content was changed. Restore it from a copy.")
    return tensors, meta


def load_weights(module: nn.Module, path: Path | str, what: str = "weights") -> Any:
    """Load a safetensors file into ``module`` and return the file's ``meta``.

    Raises:
        FileError: as for :func:`load_tensors`, or a key is missing or superfluous, or a shape differs.
    """
    tensors, meta = load_tensors(path, what)
    own = module.state_dict()
    missing, superfluous = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or superfluous:
        lacks = f" It lacks {missing[0]!r} ({len(missing)} in all)." if missing else ""
        extra = (
            f" It holds {superfluous[0]!r}, unknown to the model ({len(superfluous)} in all)." if superfluous else ""
        )
        raise FileError(f"{what} {path} do not fit the model.{lacks}{extra} Use the architecture they were saved from.")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise FileError(
                f"{what} {path} do not fit the model: {name} has shape {list(tensor.shape)} in the file and "
                f"{list(own[name].shape)} in the model. Use the architecture they were saved from."
            )
    module.load_state_dict(tensors)
    return meta


def fingerprint(model: nn.Module, *rest: Tensor | str) -> str:
    """Return a digest of a model's structure and weights, and of whatever else decides what attacks find."""
    return digest(str(model), *model.state_dict().values(), *rest)


def digest(*parts: Tensor | str) -> str:
    """Return the SHA-256 of tensors, with their types and shapes, and of texts, in their order."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            found.update(f"{part.dtype}{list(part.shape)}".encode())
            found.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            found.update(part.encode())
    return found.hexdigest()


def _split(payload: bytes) -> tuple[dict[str, Any], memoryview]:
    """Return the header and the data of a safetensors file's bytes."""
    end = 8 + int.from_bytes(payload[:8], "little")
    return json.loads(payload[8:end]), memoryview(payload)[end:]


def _checksum(tensors: Mapping[str, Tensor], meta: str) -> str:
    digest = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
