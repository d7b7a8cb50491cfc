"""Prophesee's ``.dat`` files, as of N-CARS and the automotive sets."""

import re
from pathlib import Path

import numpy as np

from stalwart.core.errors import FileError
from stalwart.core.files import read_bytes
from stalwart.data.events.stream import EventStream

_KINDS = (0, 12)
"""Event types of changes in contrast: of older and of newer files."""


def read_dat(path: Path) -> EventStream:
    """Read a text header of lines with ``%``, two bytes (type and size of events), and events of eight bytes.

    An event is the time in microseconds in 32 bits, and 14 bits of x, 14 of y and the polarity. Where the header does not
    give the sensor's size, it is that of the largest coordinates.

    Raises:
        FileError: the file is missing, cut, or holds events of another type.
        InputError: its events are outside of the frame or out of order.
    """
    content, place = read_bytes(path, "recording"), 0
    header = b""
    while content[place : place + 1] == b"%":
        end = content.find(b"\n", place)
        if end < 0:
            raise FileError(f"{path} ends within its header; it is cut.")
        header += content[place : end + 1]
        place = end + 1
    if not header or len(content) < place + 2:
        raise FileError(f"{path} is no .dat file of events: it has no header of lines that begin with '%'.")
    kind, size = content[place], content[place + 1]
    if kind not in _KINDS or size != 8:
        raise FileError(
            f"{path} holds events of type {kind} and {size} bytes, only types 0 and 12 of 8 bytes are read."
        )
    place += 2
    if (len(content) - place) % 8:
        raise FileError(
            f"{path} ends within an event, after byte {place + (len(content) - place) // 8 * 8}; it is cut."
        )
    raw = np.frombuffer(content, "<u4", offset=place).reshape(-1, 2).astype(np.int64)
    x, y, polarity = raw[:, 1] & 0x3FFF, (raw[:, 1] >> 14) & 0x3FFF, (raw[:, 1] >> 28) & 1
    height, width = (_side(header, name, values) for name, values in ((b"Height", y), (b"Width", x)))
    return EventStream(raw[:, 0], x, y, polarity, height, width, str(path))


def _side(header: bytes, name: bytes, values: np.ndarray) -> int:
    found = re.search(rb"%\s*" + name + rb"\s+(\d{1,5})\s", header, re.IGNORECASE)
    return int(found[1]) if found else int(values.max(initial=0)) + 1
