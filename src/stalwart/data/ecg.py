"""ECG5000: heartbeats as series of 140 values."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stalwart.core.errors import FileError
from stalwart.core.numbers import Number
from stalwart.core.random import generator
from stalwart.data.arrays import read_arrays
from stalwart.data.locate import DATA_VARIABLE, places
from stalwart.data.splits import TEST_SEED, Data, Split, assemble, require_fraction

_FILE = "ecg5000.npz"
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_LENGTH, _CLASSES = 140, ("normal", "R-on-T", "premature ventricular", "supraventricular", "unclassified")


@dataclass(frozen=True)
class Ecg5000:
    """ECG5000: heartbeats of one patient, [1, 140], five classes, 500 to train on and about 4,500 to test on.

    Classes are far from equally frequent: more than half of the beats are normal, a third R-on-T, and few training samples
    are left for the other three. Series are scaled to [0, 1] by the least and largest value of all training samples; a test
    value beyond them is cut. Both parts, which the archive sorts by class, are shuffled in one order for all seeds.

    The file ``ecg5000.npz`` holds x_train [N, 140] and x_test as floats, y_train [N] and y_test as the publisher's labels 1
    to 5. It is looked for in ``data_dir``, ``$STALWART_DATA`` and the user's cache, there and below ``ecg5000``.

    Args:
        validation: the part of the training set that is held out for validation, in [0, 1).

    Raises:
        UsageError: ``validation`` is not in [0, 1).

    Source: UCR time series archive, ECG5000, cut from record chf07 of the BIDMC Congestive Heart Failure Database (PhysioNet;
    Baim et al., 1986). It is not the MIT-BIH set of Büchel, Faber and Muir, ICLR 2022.
    """

    validation: Number = 0.2

    def __post_init__(self) -> None:
        require_fraction(self.validation, "validation")

    def load(self, seed: int = 0, data_dir: Path | None = None, download: bool = True, progress: bool = False) -> Data:
        """Find and read the file; it is not downloaded."""
        path = _find(data_dir)
        arrays = read_arrays(path, _ARRAYS)
        missing = [name for name in _ARRAYS if name not in arrays]
        if missing:
            raise FileError(f"{path} lacks the arrays {', '.join(missing)}; it is another file. Replace it.")
        train, test = ((_series(arrays, part, path), _labels(arrays, part, path)) for part in ("train", "test"))
        low, high = float(train[0].min()), float(train[0].max())
        parts = [
            _shuffled(((torch.from_numpy(x) - low) / (high - low)).clamp_(0, 1)[:, None].float(), torch.from_numpy(y))
            for x, y in (train, test)
        ]
        return assemble("ecg5000", parts[0], parts[1], _CLASSES, seed, self.validation)


def _shuffled(x: torch.Tensor, y: torch.Tensor) -> Split:
    # The file is sorted by class, and whoever takes its first samples would see normal beats only.
    order = torch.randperm(len(y), generator=generator(TEST_SEED, "ecg5000"))
    return Split(x[order], y[order])


def _find(data_dir: Path | None) -> Path:
    folders = places(data_dir, "ecg5000", ("ecg5000", "ECG5000"))
    for folder in folders:
        if (folder / _FILE).is_file():
            return folder / _FILE
    looked = "\n  ".join(map(str, folders))
    raise FileError(
        f"dataset 'ecg5000' was not found: no folder holds {_FILE}. Looked in\n  {looked}\nIt is not downloaded: make the "
        f"file from the UCR archive's ECG5000_TRAIN and ECG5000_TEST by numpy.savez(x_train=..., y_train=..., x_test=..., "
        f"y_test=...), and name its folder with --data-dir (data_dir=) or the environment variable {DATA_VARIABLE}."
    )


def _series(arrays: dict[str, np.ndarray], part: str, path: Path) -> np.ndarray:
    x = arrays[f"x_{part}"]
    if x.dtype.kind != "f" or x.ndim != 2 or x.shape[1] != _LENGTH or not len(x):
        raise FileError(
            f"{path} holds x_{part} {x.dtype} {list(x.shape)}, not floats [N, {_LENGTH}]; it is another file. Replace it."
        )
    if not np.isfinite(x).all() or x.min() == x.max():
        raise FileError(
            f"{path} holds values in x_{part} that are not finite, or all the same; it is corrupt. Replace it."
        )
    return x.astype(np.float64)


def _labels(arrays: dict[str, np.ndarray], part: str, path: Path) -> np.ndarray:
    y, count = arrays[f"y_{part}"], len(arrays[f"x_{part}"])
    if y.shape != (count,):
        raise FileError(f"{path} holds {count} series in x_{part}, but y_{part} {list(y.shape)}; replace it.")
    bad = ~np.isin(y, np.arange(1, len(_CLASSES) + 1))
    if bad.any():
        first = int(bad.argmax())
        raise FileError(
            f"{path} gives sample {first} of y_{part} the label {y[first]}, not 1 to 5; it is corrupt. Replace it."
        )
    return y.astype(np.int64) - 1
