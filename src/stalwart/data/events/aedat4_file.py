"""AEDAT 4 files of iniVation's cameras: packets of flatbuffers, perhaps compressed."""

import re
import struct
from pathlib import Path

import numpy as np

from stalwart.core.errors import FileError
from stalwart.core.files import read_bytes
from stalwart.data.events.stream import EventStream

_MAGIC = b"#!AER-DAT4.0\r\n"
_NONE, _LZ4 = (0,), (1, 2)
_EVENT = np.dtype({"names": ["t", "x", "y", "on"], "formats": ["<i8", "<i2", "<i2", "u1"], "itemsize": 16})


def read_aedat4(path: Path) -> EventStream:
    """Read the events of all packets with the identifier EVTS; frames and inertial data are passed over.

    Packets compressed by LZ4 need the package ``lz4``, the extra ``stalwart[events]``.

    Raises:
        FileError: the file is missing, cut, damaged, or compressed in a way that cannot be read here.
        InputError: its events are outside of the frame or out of order.

    Source: iniVation, "AEDAT 4.0", file format specification.
    """
    content = read_bytes(path, "recording")
    if not content.startswith(_MAGIC):
        raise FileError(f"{path} is no AEDAT 4 file: it does not begin with '#!AER-DAT4.0'.")
    try:
        return _read(path, content)
    except (struct.error, IndexError, ValueError) as problem:
        raise FileError(f"{path} is damaged: {problem}.") from problem


def _read(path: Path, content: bytes) -> EventStream:
    (size,) = struct.unpack_from("<I", content, len(_MAGIC))
    place = len(_MAGIC) + 4 + size
    header = content[len(_MAGIC) + 4 : place]
    table = struct.unpack_from("<I", header)[0]
    compression = _number(header, table, 0, "<i")
    end = _number(header, table, 1, "<q") or -1
    end = len(content) if end < 0 else min(end, len(content))
    info = header.decode("utf-8", "replace")
    parts = []
    while place < end:
        if end - place < 8:
            raise FileError(f"{path} ends within the header of a packet at byte {place}; it is cut.")
        _, size = struct.unpack_from("<ii", content, place)
        if size < 0 or place + 8 + size > len(content):
            raise FileError(f"{path} ends within the packet at byte {place}; it is cut.")
        packet = _unpacked(path, content[place + 8 : place + 8 + size], compression)
        place += 8 + size
        if packet[8:12] == b"EVTS":
            parts.append(_events(packet))
    events = np.concatenate(parts) if parts else np.zeros(0, _EVENT)
    height, width = (_side(info, name, events[axis]) for name, axis in (("sizeY", "y"), ("sizeX", "x")))
    return EventStream(events["t"], events["x"], events["y"], events["on"], height, width, str(path))


def _unpacked(path: Path, packet: bytes, compression: int) -> bytes:
    if compression in _NONE:
        return packet
    if compression not in _LZ4:
        raise FileError(f"{path} is compressed by Zstandard, which is not read; save it uncompressed or with LZ4.")
    try:
        import lz4.frame
    except ImportError:
        raise FileError(
            f"{path} is compressed by LZ4; install stalwart[events], which brings the package lz4."
        ) from None
    try:
        return bytes(lz4.frame.decompress(packet))
    except RuntimeError as problem:
        raise FileError(f"{path} is damaged: {problem}.") from problem


def _number(buffer: bytes, table: int, field: int, form: str) -> int:
    """Return a number field of a flatbuffer's table, 0 where it is absent."""
    place = _field(buffer, table, field)
    return int(struct.unpack_from(form, buffer, place)[0]) if place else 0


def _field(buffer: bytes, table: int, field: int) -> int:
    entries = table - struct.unpack_from("<i", buffer, table)[0]
    length = struct.unpack_from("<H", buffer, entries)[0]
    if 4 + 2 * field >= length:
        return 0
    offset = struct.unpack_from("<H", buffer, entries + 4 + 2 * field)[0]
    return table + offset if offset else 0


def _events(packet: bytes) -> np.ndarray:
    """Return the vector of structs that is the first field of a size-prefixed buffer's root."""
    table = 4 + struct.unpack_from("<I", packet, 4)[0]
    place = _field(packet, table, 0)
    if not place:
        return np.zeros(0, _EVENT)
    vector = place + struct.unpack_from("<I", packet, place)[0]
    number = struct.unpack_from("<I", packet, vector)[0]
    return np.frombuffer(packet, _EVENT, number, vector + 4)


def _side(info: str, name: str, values: np.ndarray) -> int:
    found = re.search(rf'key="{name}"[^>]*>(\d{{1,5}})<', info)
    return int(found[1]) if found else int(values.max(initial=0)) + 1
