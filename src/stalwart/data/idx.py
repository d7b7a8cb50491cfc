"""The IDX file format: a big-endian header and unsigned bytes, plain or compressed by gzip."""

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np

from stalwart.core.errors import FileError

_MOST_ITEMS = 10_000_000
_GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path, item: tuple[int, ...]) -> np.ndarray:
    """Read one IDX file of unsigned bytes.

    The header is 0, 0, the type (8: unsigned byte), the number of axes, and each axis' length as a big-endian uint32;
    the bytes follow in C order and end with the file.

    Args:
        path: the file; whether it is compressed is read from its first bytes, not from its name.
        item: the shape every item must have: ``(28, 28)`` for MNIST images, ``()`` for labels.

    Returns:
        uint8 [N, *item].

    Raises:
        FileError: missing, truncated, corrupt, not IDX, of another shape, or with bytes left over.

    Source: LeCun, Cortes and Burges, The MNIST Database, "File formats".
    """
    try:
        with path.open("rb") as plain:
            compressed = plain.read(2) == _GZIP_MAGIC
            plain.seek(0)
            if not compressed:
                return _parse(plain, path, item)
            with gzip.GzipFile(fileobj=plain) as stream:
                return _parse(stream, path, item)
    except FileError:
        raise
    except (OSError, EOFError, zlib.error) as problem:
        raise FileError(f"cannot read {path}: {problem}. It is damaged or truncated; replace it.") from problem


def _parse(stream: io.BufferedIOBase, path: Path, item: tuple[int, ...]) -> np.ndarray:
    axes = 1 + len(item)
    header = stream.read(4 + 4 * axes)
    if len(header) < 4 + 4 * axes:
        raise FileError(f"{path} ends within its IDX header; it is truncated. Replace it.")
    magic, *lengths = struct.unpack(f">{1 + axes}I", header)
    if magic != 0x800 + axes:
        raise FileError(
            f"{path} starts with 0x{magic:08x}, not with 0x{0x800 + axes:08x}, the mark of IDX bytes with {axes} axes; "
            "it is another kind of file. Replace it."
        )
    count, shape = lengths[0], tuple(lengths[1:])
    # A corrupt count must not make us reserve terabytes.
    if shape != item or not 0 < count <= _MOST_ITEMS:
        raise FileError(
            f"{path} says that it holds {count} items of shape {shape}, but items of shape {item} are expected "
            f"(1 to {_MOST_ITEMS} of them); it is corrupt or another dataset. Replace it."
        )
    size = count * int(np.prod(item, dtype=np.int64))
    # bytearray: torch refuses to share memory that cannot be written.
    body = bytearray(stream.read(size))
    if len(body) != size:
        raise FileError(f"{path} has {len(body)} of the {size} bytes its header promises; it is truncated. Replace it.")
    # Reading past the end also makes gzip verify its own checksum.
    if stream.read(1):
        raise FileError(f"{path} goes on after the {size} bytes its header promises; it is corrupt. Replace it.")
    return np.frombuffer(body, np.uint8).reshape(count, *item)
