"""Event-camera datasets, as frames [T, 2, H, W] in memory."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stalwart.core.errors import FileError
from stalwart.core.numbers import Number
from stalwart.data.arrays import read_arrays
from stalwart.data.digits import Digits
from stalwart.data.events import EventStream, frames, read_events, record
from stalwart.data.events.frames import check_framing
from stalwart.data.locate import places
from stalwart.data.splits import Data, Split, assemble, require_fraction

_CLASSES = tuple(map(str, range(10)))
_GESTURES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter clockwise",
    "left arm clockwise",
    "left arm counter clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)


@dataclass(frozen=True)
class Framing:
    """How recordings become frames, see :func:`stalwart.data.events.frames`.

    Args:
        steps: T, the number of frames.
        by: "time" for equally long frames, "count" for frames of equally many events.
        limit: how many events make a bin white; 1 makes binary rasters.
        shrink: an integer by which height and width are divided.
        validation: the part of the training samples that is held out for validation, in [0, 1).

    Raises:
        UsageError: a number out of range.
    """

    steps: int = 10
    by: Literal["time", "count"] = "time"
    limit: int = 1
    shrink: int = 1
    validation: Number = 0.1

    def __post_init__(self) -> None:
        require_fraction(self.validation, "validation")
        check_framing(self.steps, self.by, self.limit, self.shrink)

    def _frames(self, stream: EventStream) -> Tensor:
        return frames(stream, self.steps, self.by, self.limit, self.shrink)

    def _split(self, recordings: Iterator[tuple[EventStream, int]]) -> Split:
        made = [(self._frames(stream), label) for stream, label in recordings]
        return Split(torch.stack([x for x, _ in made]), torch.tensor([label for _, label in made]))


@dataclass(frozen=True)
class DigitsEvents(Framing):
    """Scikit-learn's digits before a simulated event camera, [T, 2, 8, 8]; see :func:`stalwart.data.events.record`."""

    steps: int = 8

    def load(self, seed: int = 0, data_dir: Path | None = None, download: bool = True, progress: bool = False) -> Data:
        """Return the data; nothing is read from elsewhere."""
        data = Digits(self.validation).load(seed)

        def turned(split: Split) -> Split:
            return self._split(zip(record(split.images(slice(None))), split.y.tolist(), strict=True))

        train, validation, test = (turned(one) for one in (data.train, data.validation, data.test))
        return Data("digits-events", train, validation, test, data.classes, tuple(train.x.shape[1:]))


@dataclass(frozen=True)
class NMnist(Framing):
    """N-MNIST: an event camera before MNIST on a screen, [T, 2, 34, 34].

    Read from the published folders (Train and Test, a folder a digit, ``.bin`` files), or from one file ``nmnist*.npz`` of
    all events: x, y, p, dt (microseconds since the event before of the same recording), offset, label and is_test.

    Source: Orchard et al., "Converting static image datasets to spiking neuromorphic datasets using saccades", 2015.
    """

    def load(self, seed: int = 0, data_dir: Path | None = None, download: bool = True, progress: bool = False) -> Data:
        """Find and read the recordings.

        Raises:
            FileError: they are nowhere, cut or damaged; they are never downloaded.
        """
        looked = places(data_dir, "nmnist", ("nmnist", "N-MNIST", "NMNIST", "nmnist_1100"))
        for folder in looked:
            for packed in sorted(folder.glob("nmnist*.npz")):
                return self._packed(packed, seed)
            if (folder / "Train").is_dir() and (folder / "Test").is_dir():
                train, test = (self._split(self._folder(folder / name)) for name in ("Train", "Test"))
                return assemble("nmnist", train, test, _CLASSES, seed, self.validation)
        raise _nowhere("nmnist", "the folders Train and Test, or a file nmnist*.npz", looked)

    def _folder(self, folder: Path) -> Iterator[tuple[EventStream, int]]:
        found = False
        for label in range(10):
            for path in sorted((folder / str(label)).glob("*.bin")):
                found = True
                yield read_events(path), label
        if not found:
            raise FileError(f"{folder} has no recordings 0/*.bin to 9/*.bin; unpack N-MNIST's archive there again.")

    def _packed(self, path: Path, seed: int) -> Data:
        names = ("x", "y", "p", "dt", "offset", "label", "is_test")
        arrays = read_arrays(path, names)
        missing = [name for name in names if name not in arrays]
        if missing:
            raise FileError(f"{path} lacks the array '{missing[0]}'; it needs {', '.join(names)}.")
        offset, label, is_test = arrays["offset"].astype(np.int64), arrays["label"], arrays["is_test"].astype(bool)
        count = len(arrays["x"])
        whole = len(offset) == len(label) + 1 == len(is_test) + 1 and len(label) > 0
        if not whole or offset[0] != 0 or offset[-1] != count or (np.diff(offset) < 0).any():
            raise FileError(f"{path} is damaged: its offsets do not cut {count} events into {len(label)} recordings.")

        def recordings(test: bool) -> Iterator[tuple[EventStream, int]]:
            for n in np.flatnonzero(is_test == test):
                part = slice(int(offset[n]), int(offset[n + 1]))
                t = np.cumsum(arrays["dt"][part].astype(np.int64))
                what = f"{path}, recording {n}"
                stream = EventStream(t, arrays["x"][part], arrays["y"][part], arrays["p"][part], 34, 34, what)
                yield stream, int(label[n])

        train, test = self._split(recordings(False)), self._split(recordings(True))
        return assemble("nmnist", train, test, _CLASSES, seed, self.validation)


@dataclass(frozen=True)
class DvsGesture(Framing):
    """DVS128 Gesture: eleven gestures before an event camera, [T, 2, 128, 128] unless shrunk.

    Read from the published folder: ``trials_to_train.txt``, ``trials_to_test.txt``, and for each recording ``NAME.aedat`` and
    ``NAME_labels.csv`` (class, start and end in microseconds).

    Source: Amir et al., "A low power, fully event-based gesture recognition system", CVPR 2017.
    """

    steps: int = 16
    shrink: int = 4
    limit: int = 4

    def load(self, seed: int = 0, data_dir: Path | None = None, download: bool = True, progress: bool = False) -> Data:
        """Find and read the recordings.

        Raises:
            FileError: they are nowhere, cut or damaged; they are never downloaded.
        """
        looked = places(data_dir, "dvs-gesture", ("dvs-gesture", "DvsGesture", "DVSGesture"))
        folder = next((one for one in looked if (one / "trials_to_train.txt").is_file()), None)
        if folder is None:
            raise _nowhere("dvs-gesture", "trials_to_train.txt and the .aedat files it names", looked)
        train, test = (self._split(self._clips(folder, f"trials_to_{part}.txt")) for part in ("train", "test"))
        return assemble("dvs-gesture", train, test, _GESTURES, seed, self.validation)

    def _clips(self, folder: Path, trials: str) -> Iterator[tuple[EventStream, int]]:
        if not (folder / trials).is_file():
            raise FileError(f"{folder} has no {trials}; unpack DVS128 Gesture's archive there again.")
        for name in (folder / trials).read_text().split():
            stream, table = read_events(folder / name), folder / name.replace(".aedat", "_labels.csv")
            try:
                rows = list(csv.DictReader(table.read_text().splitlines()))
                clips = [(int(row["class"]) - 1, int(row["startTime_usec"]), int(row["endTime_usec"])) for row in rows]
            except (OSError, KeyError, TypeError, ValueError) as problem:
                raise FileError(
                    f"{table} is no table of class, startTime_usec and endTime_usec: {problem}."
                ) from problem
            for label, start, end in clips:
                if not 0 <= label < len(_GESTURES):
                    raise FileError(f"{table} names a class {label + 1}, but there are 1 to {len(_GESTURES)}.")
                yield stream.between(start, end), label


def _nowhere(name: str, what: str, looked: list[Path]) -> FileError:
    folders = "\n  ".join(map(str, looked))
    return FileError(
        f"dataset '{name}' was not found: no folder holds {what}. Looked in\n  {folders}\nIt is not downloaded; fetch it from "
        "its publisher and name the folder with --data-dir (data_dir=) or the environment variable STALWART_DATA."
    )
