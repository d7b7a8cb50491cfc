"""CIFAR-10 and CIFAR-100 in their published binary versions, from the archive or its extracted files."""

import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stalwart.core.errors import FileError
from stalwart.core.files import read_bytes
from stalwart.core.numbers import Number
from stalwart.data.download import Remote
from stalwart.data.locate import Source
from stalwart.data.splits import Data, Split, assemble, require_fraction

_PIXELS = 3 * 32 * 32
_WHY = (
    "the Python version is a pickle, which can run any code when it is read, so stalwart reads only the binary version."
)
_CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class _Layout:
    """One published binary version: each record is ``label_bytes`` labels (the last one is used) and 3072 pixels."""

    name: str
    archive: str
    md5: str
    folder: str
    python: tuple[str, str]
    folders: tuple[str, ...]
    train: tuple[str, ...]
    test: str
    train_records: int
    test_records: int
    label_bytes: int
    classes: tuple[str, ...]

    def source(self) -> Source:
        files = (*self.train, self.test)
        return Source(
            name=self.name,
            remotes=(Remote(self.archive, f"https://www.cs.toronto.edu/~kriz/{self.archive}", self.md5),),
            layouts=((self.archive,), tuple(f"{self.folder}/{file}" for file in files), files),
            folders=self.folders,
            refused=self.python,
            why_refused=_WHY,
        )


_CIFAR10 = _Layout(
    name="cifar10",
    archive="cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    python=("cifar-10-python.tar.gz", "cifar-10-batches-py"),
    folders=("cifar10", "cifar-10", "CIFAR10"),
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test="test_batch.bin",
    train_records=10_000,
    test_records=10_000,
    label_bytes=1,
    classes=tuple(_CIFAR10_CLASSES.split()),
)
_CIFAR100 = _Layout(
    name="cifar100",
    archive="cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    python=("cifar-100-python.tar.gz", "cifar-100-python"),
    folders=("cifar100", "cifar-100", "CIFAR100"),
    train=("train.bin",),
    test="test.bin",
    train_records=50_000,
    test_records=10_000,
    label_bytes=2,
    classes=tuple(_CIFAR100_CLASSES.split()),
)


@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10: small photographs, [3, 32, 32], 10 classes, 50,000 to train on and 10,000 to test on.

    Args:
        validation: the part of the training set that is held out for validation, in [0, 1).

    Raises:
        UsageError: ``validation`` is not in [0, 1).

    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    validation: Number = 0.1

    def __post_init__(self) -> None:
        require_fraction(self.validation, "validation")

    def load(self, seed: int = 0, data_dir: Path | None = None, download: bool = True, progress: bool = False) -> Data:
        """Find and read the binary version; see :func:`stalwart.data.load`."""
        return _load(_CIFAR10, self.validation, seed, data_dir, download, progress)


@dataclass(frozen=True)
class Cifar100:
    """CIFAR-100: small photographs, [3, 32, 32], 100 (fine) classes, 50,000 to train on and 10,000 to test on.

    Args:
        validation: the part of the training set that is held out for validation, in [0, 1).

    Raises:
        UsageError: ``validation`` is not in [0, 1).

    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    validation: Number = 0.1

    def __post_init__(self) -> None:
        require_fraction(self.validation, "validation")

    def load(self, seed: int = 0, data_dir: Path | None = None, download: bool = True, progress: bool = False) -> Data:
        """Find and read the binary version; see :func:`stalwart.data.load`."""
        return _load(_CIFAR100, self.validation, seed, data_dir, download, progress)


def _load(layout: _Layout, validation: float, seed: int, data_dir: Path | None, download: bool, progress: bool) -> Data:
    found = layout.source().find(data_dir, download, progress)
    if found[0].name == layout.archive:
        contents = _read_archive(found[0], (*layout.train, layout.test))
    else:
        contents = {file.name: read_bytes(file, "CIFAR batch") for file in found}
    where = found[0] if len(found) == 1 else found[0].parent
    parts = [_parse(contents.pop(name), layout, layout.train_records, f"{name} in {where}") for name in layout.train]
    train = Split(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))
    test = _parse(contents.pop(layout.test), layout, layout.test_records, f"{layout.test} in {where}")
    return assemble(layout.name, train, test, layout.classes, seed, validation)


def _read_archive(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    try:
        # Members are read, never extracted: their paths and links have no effect.
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name in names and member.isfile():
                    stream = archive.extractfile(member)
                    contents[name] = stream.read() if stream else b""
    except (tarfile.TarError, OSError, EOFError, zlib.error) as problem:
        raise FileError(f"cannot read {path}: {problem}. It is damaged or truncated; replace it.") from problem
    missing = [name for name in names if name not in contents]
    if missing:
        raise FileError(f"{path} lacks {', '.join(missing)}; it is truncated or another archive. Replace it.")
    return contents


def _parse(content: bytes, layout: _Layout, records: int, what: str) -> Split:
    size = layout.label_bytes + _PIXELS
    if len(content) != records * size:
        raise FileError(
            f"{what} has {len(content)} bytes, but {records} records of {size} bytes make {records * size}; "
            "it is truncated or corrupt. Replace it."
        )
    table = np.frombuffer(content, np.uint8).reshape(records, size)
    y = table[:, layout.label_bytes - 1].astype(np.int64)
    if y.max() >= len(layout.classes):
        first = int((y >= len(layout.classes)).argmax())
        raise FileError(
            f"{what} gives sample {first} the label {y[first]}, but there are {len(layout.classes)} classes; "
            "it is corrupt. Replace it."
        )
    x = table[:, layout.label_bytes :].copy().reshape(records, 3, 32, 32)
    return Split(torch.from_numpy(x), torch.from_numpy(y))
