"""Files from elsewhere, plain or compressed by gzip, read whole but never beyond a stated size."""

import gzip
import zlib
from pathlib import Path

from stalwart.core.errors import FileError

_GZIP_MAGIC = b"\x1f\x8b"


def read_limited(path: Path | str, what: str, most: int) -> bytes:
    """Read a file; one that starts with gzip's mark is decompressed, whatever its name.

    Args:
        path: the file.
        what: what it should be, for messages.
        most: the largest size in bytes, after decompression; a small file can hold a huge stream.

    Raises:
        FileError: missing, unreadable, truncated, or larger than ``most``.
    """
    try:
        with Path(path).open("rb") as plain:
            compressed = plain.read(2) == _GZIP_MAGIC
            plain.seek(0)
            if compressed:
                with gzip.GzipFile(fileobj=plain) as stream:
                    content = stream.read(most + 1)
            else:
                content = plain.read(most + 1)
    except (OSError, EOFError, zlib.error) as problem:
        raise FileError(f"cannot read {what} {path}: {problem}. Check the path, or restore the file.") from problem
    if len(content) > most:
        raise FileError(f"{what} {path} is larger than {most} bytes, the most that is read. Is it the right file?")
    return content


def read_text(path: Path | str, what: str, most: int) -> str:
    """Read a file of UTF-8 text as :func:`read_limited` does.

    Raises:
        FileError: as there, or it is no UTF-8 text.
    """
    try:
        return read_limited(path, what, most).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise FileError(f"{what} {path} is not UTF-8 text ({problem}). Is it the right file?") from problem
