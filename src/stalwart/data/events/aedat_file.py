"""AEDAT 3.1 files, as of the DVS128 Gesture set."""

import struct
from pathlib import Path

import numpy as np

from stalwart.core.errors import FileError
from stalwart.core.files import read_bytes
from stalwart.data.events.stream import EventStream

_END = b"#!END-HEADER\r\n"
_POLARITY = 1


def read_aedat(path: Path, height: int = 128, width: int = 128) -> EventStream:
    """Read the polarity events of all packets; those marked invalid and other types are passed over.

    A packet begins with type, source (16 bits each), event size, time-stamp offset, overflow count, capacity, number and valid
    number (32 bits each). A polarity event is 32 bits (valid, polarity, 15 bits of y, 15 of x) and 31 bits of microseconds.

    Raises:
        FileError: the file is missing, of another version, or cut.
        InputError: its events are outside of the frame or out of order.
    """
    content = read_bytes(path, "recording")
    place = content.find(_END)
    if not content.startswith(b"#!AER-DAT3.1") or place < 0:
        raise FileError(f"{path} is no AEDAT 3.1 file: it does not begin with '#!AER-DAT3.1' and a header.")
    place += len(_END)
    parts = []
    while place < len(content):
        if len(content) - place < 28:
            raise FileError(f"{path} ends within the header of a packet at byte {place}; it is cut.")
        kind, _, size, _, overflow, _, number, _ = struct.unpack_from("<hhiiiiii", content, place)
        begin, place = place + 28, place + 28 + size * number
        if size < 0 or number < 0 or place > len(content):
            raise FileError(f"{path} ends within the packet at byte {begin - 28}; it is cut or damaged.")
        if kind != _POLARITY or not number:
            continue
        if size != 8:
            raise FileError(f"{path} has polarity events of {size} bytes at byte {begin}, they must have 8.")
        raw = np.frombuffer(content, "<u4", 2 * number, begin).reshape(-1, 2).astype(np.int64)
        raw = raw[raw[:, 0] & 1 == 1]
        parts.append(
            np.stack([raw[:, 1] + (overflow << 31), raw[:, 0] >> 17, (raw[:, 0] >> 2) & 0x7FFF, (raw[:, 0] >> 1) & 1])
        )
    t, x, y, polarity = np.concatenate(parts, 1) if parts else np.zeros((4, 0), np.int64)
    return EventStream(t, x, y, polarity, height, width, str(path))
