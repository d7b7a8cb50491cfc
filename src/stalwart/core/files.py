"""Files that are either whole or absent: written under a temporary name, flushed, renamed."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from stalwart.core.errors import FileError


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path``; rename it onto ``path`` if the block succeeds, delete it otherwise.

    Raises:
        FileError: the folder cannot be written, or the disk is full; ``path`` is left as it was.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as problem:
        if isinstance(problem, FileError):
            raise
        raise FileError(
            f"cannot write {path}: {problem.strerror or problem}. Nothing was changed; free space or choose "
            "another output folder and run again."
        ) from problem
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as stream:
        stream.write(text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_bytes(path: Path | str, what: str) -> bytes:
    """Read a file whole.

    Raises:
        FileError: it is missing or unreadable; the message names ``what`` it should have been.
    """
    try:
        return Path(path).read_bytes()
    except OSError as problem:
        raise FileError(f"cannot read {what} {path}: {problem.strerror or problem}.") from problem


def read_json(path: Path | str, what: str) -> Any:
    """Read a JSON file.

    Raises:
        FileError: it is missing, truncated or not JSON.
    """
    try:
        return json.loads(read_bytes(path, what))
    except ValueError as problem:
        raise FileError(f"{what} {path} is not valid JSON ({problem}); it may be truncated. Restore it.") from problem


def require_writable(folder: Path | str) -> Path:
    """Create ``folder`` if needed and prove that a file can be written in it, before any long work starts.

    Raises:
        FileError: it cannot be created or written.
    """
    folder = Path(folder)
    probe = folder / ".writable"
    with atomic(probe) as stream:
        stream.write(b"ok")
    probe.unlink()
    return folder
