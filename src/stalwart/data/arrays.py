"""A user's own arrays in a NumPy ``.npz`` file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from stalwart.core.checks import check_images, check_labels
from stalwart.core.errors import FileError, InputError
from stalwart.core.numbers import Number
from stalwart.data.splits import Data, Split, assemble, require_fraction

_CHANNELS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Npz:
    """Arrays ``x_train, y_train`` and, if there is a test set, ``x_test, y_test`` of an ``.npz`` file.

    x holds bytes (uint8) or floats in [0, 1] and keeps that type, [N, *d]; y holds integers [N] from 0 to K - 1. The
    class names are an optional array ``classes`` of K strings.

    Args:
        path: the file; a relative path that does not exist is also tried below ``data_dir``.
        layout: "auto" takes [N, H, W] as images of one channel, and [N, H, W, C] as images whose channels come last if
            the last axis has 1 to 4 entries and the second has not; "first" and "last" say where the channels of
            [N, C, H, W] are; "keep" changes nothing, for data that are no images.
        validation: the part of the training samples that is held out for validation, in [0, 1).
        test: the part of all samples that is held out for testing where there is no x_test, in [0, 1); it is the same
            for every seed.

    Raises:
        UsageError: a part is not in [0, 1).
    """

    path: Path
    layout: Literal["auto", "first", "last", "keep"] = "auto"
    validation: Number = 0.1
    test: Number = 0.2

    def __post_init__(self) -> None:
        require_fraction(self.validation, "validation")
        require_fraction(self.test, "test")

    def load(self, seed: int = 0, data_dir: Path | None = None, download: bool = True, progress: bool = False) -> Data:
        """Read and check the arrays.

        Raises:
            FileError: the file is missing or damaged, or holds pickled objects, which are never read.
            InputError: an array is missing, or has a wrong type, shape or value.
        """
        path = self.path
        if data_dir is not None and not path.exists() and (data_dir / path).exists():
            path = data_dir / path
        arrays = read_arrays(path, ("x_train", "y_train", "x_test", "y_test", "classes"))
        train = self._split(arrays, "train", path)
        test = self._split(arrays, "test", path) if "x_test" in arrays or "y_test" in arrays else float(self.test)
        names = _classes(arrays, train, path)
        if isinstance(test, Split):
            _check_range(test, len(names), f"y_test in {path}")
        return assemble(path.stem, train, test, names, seed, self.validation)

    def _split(self, arrays: dict[str, np.ndarray], part: str, path: Path) -> Split:
        for key in (f"x_{part}", f"y_{part}"):
            if key not in arrays:
                raise InputError(f"{path} has no array '{key}', only {', '.join(sorted(arrays)) or 'none'}; add it.")
        x = _samples(arrays[f"x_{part}"], f"x_{part} in {path}", self.layout)
        y = _labels(arrays[f"y_{part}"], len(x), f"y_{part} in {path}")
        return Split(x, y)


def read_arrays(path: Path, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return those of the ``wanted`` arrays that an ``.npz`` file holds.

    Raises:
        FileError: the file is missing or damaged, or holds pickled objects, which are never read.
    """
    try:
        # Opened here, so that it is closed also where numpy fails half-way.
        with path.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                raise FileError(f"{path} holds one array without a name; save it with numpy.savez({wanted[0]}=...).")
            return {key: content[key] for key in content.files if key in wanted}
    except FileError:
        raise
    except Exception as problem:  # a damaged archive provokes errors of many types in zipfile, zlib and numpy
        raise FileError(
            f"cannot read {path} as .npz: {problem}. It is missing, damaged, or holds Python objects, which stalwart "
            "never unpickles; save plain arrays with numpy.savez."
        ) from problem


def _samples(x: np.ndarray, what: str, layout: str) -> torch.Tensor:
    if x.ndim < 2 or x.size == 0:
        raise InputError(f"{what} must have shape [N, ...] with N >= 1, got {list(x.shape)}.")
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise InputError(
            f"{what} must be uint8 (0 to 255) or floats in [0, 1], got {x.dtype}; convert it, for example by "
            "x.astype(numpy.uint8)."
        )
    x = _channels_first(x, what, layout)
    if x.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(x))
    floats = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    check_images(floats, what=what)
    # Within the tolerance of the check a value may still be outside of [0, 1], where threat sets begin and end.
    return floats.clamp(0.0, 1.0)


def _channels_first(x: np.ndarray, what: str, layout: str) -> np.ndarray:
    if layout == "keep":
        return x
    if x.ndim == 3:
        return x[:, None]
    if layout != "auto" and x.ndim != 4:
        raise InputError(f"{what} has shape {list(x.shape)}, which has no channels; use layout=keep.")
    last = layout == "last" or (
        layout == "auto" and x.ndim == 4 and x.shape[3] in _CHANNELS and x.shape[1] not in _CHANNELS
    )
    return x.transpose(0, 3, 1, 2) if last else x


def _labels(y: np.ndarray, count: int, what: str) -> torch.Tensor:
    if y.dtype.kind not in "iu":
        raise InputError(f"{what} must be integers of shape [N], got {y.dtype} of shape {list(y.shape)}.")
    labels = torch.from_numpy(y.astype(np.int64))
    try:
        check_labels(labels, count)
    except InputError as problem:
        raise InputError(f"{what}: {problem}") from None
    return labels


def _classes(arrays: dict[str, np.ndarray], train: Split, path: Path) -> tuple[str, ...]:
    if "classes" in arrays:
        names = tuple(map(str, arrays["classes"].reshape(-1)))
        _check_range(train, len(names), f"y_train in {path}")
        return names
    present = train.y.unique()
    count = int(present[-1]) + 1
    # Labels that count from 1 would silently make a class that no sample has.
    if len(present) != count:
        absent = next(label for label in range(count) if label not in set(present.tolist()))
        raise InputError(
            f"y_train in {path} never has the label {absent}, but goes up to {count - 1}; number the classes from 0 "
            "without gaps (for labels 1 to K save y - 1), or name all classes in an array 'classes'."
        )
    return tuple(map(str, range(count)))


def _check_range(split: Split, classes: int, what: str) -> None:
    try:
        check_labels(split.y, len(split), classes)
    except InputError as problem:
        raise InputError(f"{what}: {problem}") from None
