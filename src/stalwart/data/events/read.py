"""Recordings by the form of their file."""

from collections.abc import Callable
from pathlib import Path

from stalwart.core.errors import UsageError
from stalwart.data.events.aedat4_file import read_aedat4
from stalwart.data.events.aedat_file import read_aedat
from stalwart.data.events.dat_file import read_dat
from stalwart.data.events.nmnist_file import read_nmnist
from stalwart.data.events.stream import EventStream

READERS: dict[str, Callable[[Path], EventStream]] = {
    ".bin": read_nmnist,
    ".bs2": read_nmnist,
    ".dat": read_dat,
    ".aedat": read_aedat,
    ".aedat4": read_aedat4,
}


def read_events(path: Path | str) -> EventStream:
    """Read a recording: N-MNIST's ``.bin`` and ``.bs2``, Prophesee's ``.dat``, AEDAT 3.1 (``.aedat``) and 4 (``.aedat4``).

    Raises:
        UsageError: another ending.
        FileError, InputError: as the readers raise them.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise UsageError(f"{path} ends in none of {', '.join(READERS)}; events are read from files of these forms.")
    return READERS[path.suffix](path)
