"""The files of N-MNIST and N-Caltech101: five bytes an event."""

from pathlib import Path

import numpy as np

from stalwart.core.errors import FileError
from stalwart.core.files import read_bytes
from stalwart.data.events.stream import EventStream

_OVERFLOW_ROW = 240
"""Not an event: from here on time stamps are 2^13 us later."""


def read_nmnist(path: Path, height: int = 34, width: int = 34) -> EventStream:
    """Read x, y, and in 24 bits the polarity and the time in microseconds.

    Raises:
        FileError: the file is missing, or its length is no multiple of 5.
        InputError: its events are outside of the frame or out of order.

    Source: Orchard et al., Frontiers in Neuroscience 2015; the layout of their Matlab reader.
    """
    content = read_bytes(path, "recording")
    if len(content) % 5:
        raise FileError(
            f"{path} ends within an event, {len(content) % 5} bytes after byte {len(content) // 5 * 5}; it is cut."
        )
    raw = np.frombuffer(content, np.uint8).reshape(-1, 5).astype(np.int64)
    late = raw[:, 1] == _OVERFLOW_ROW
    t = ((raw[:, 2] & 127) << 16) + (raw[:, 3] << 8) + raw[:, 4] + (np.cumsum(late) << 13)
    kept = raw[~late]
    return EventStream(t[~late], kept[:, 0], kept[:, 1], kept[:, 2] >> 7, height, width, str(path))
