"""MNIST and Fashion-MNIST: the same four IDX files."""

from dataclasses import dataclass
from pathlib import Path

import torch

from stalwart.core.errors import FileError
from stalwart.core.numbers import Number
from stalwart.data.download import Remote
from stalwart.data.idx import read_idx
from stalwart.data.locate import Source
from stalwart.data.splits import Data, Split, assemble, require_fraction

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_LAYOUTS = (
    tuple(f"{file}.gz" for file in _FILES),
    _FILES,
    tuple(file.replace("-idx", ".idx") for file in _FILES),
)


def _remotes(base: str, *sums: str) -> tuple[Remote, ...]:
    return tuple(Remote(f"{file}.gz", f"{base}{file}.gz", md5) for file, md5 in zip(_FILES, sums, strict=True))


_MNIST_FOLDERS = ("mnist", "MNIST/raw", "MNIST")
_FASHION_FOLDERS = ("fashion-mnist", "fashion_mnist", "FashionMNIST/raw", "FashionMNIST")

_MNIST = Source(
    name="mnist",
    remotes=_remotes(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    layouts=_LAYOUTS,
    folders=_MNIST_FOLDERS,
    not_folders=_FASHION_FOLDERS,
)
_FASHION = Source(
    name="fashion-mnist",
    remotes=_remotes(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    layouts=_LAYOUTS,
    folders=_FASHION_FOLDERS,
    not_folders=_MNIST_FOLDERS,
    system=(Path("/usr/share/datasets/fashion-mnist"),),
)
_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class Mnist:
    """MNIST: handwritten digits, [1, 28, 28], 60,000 to train on and 10,000 to test on.

    Args:
        validation: the part of the training set that is held out for validation, in [0, 1).

    Raises:
        UsageError: ``validation`` is not in [0, 1).

    Source: LeCun, Bottou, Bengio and Haffner, Gradient-based Learning Applied to Document Recognition, 1998.
    """

    validation: Number = 0.1

    def __post_init__(self) -> None:
        require_fraction(self.validation, "validation")

    def load(self, seed: int = 0, data_dir: Path | None = None, download: bool = True, progress: bool = False) -> Data:
        """Find and read the four files; see :func:`stalwart.data.load`."""
        files = _MNIST.find(data_dir, download, progress)
        return _read("mnist", files, tuple(map(str, range(10))), seed, self.validation)


@dataclass(frozen=True)
class FashionMnist:
    """Fashion-MNIST: clothes, [1, 28, 28], 60,000 to train on and 10,000 to test on.

    Args:
        validation: the part of the training set that is held out for validation, in [0, 1).

    Raises:
        UsageError: ``validation`` is not in [0, 1).

    Source: Xiao, Rasul and Vollgraf, Fashion-MNIST, 2017; Debian's package dataset-fashion-mnist is found as well.
    """

    validation: Number = 0.1

    def __post_init__(self) -> None:
        require_fraction(self.validation, "validation")

    def load(self, seed: int = 0, data_dir: Path | None = None, download: bool = True, progress: bool = False) -> Data:
        """Find and read the four files; see :func:`stalwart.data.load`."""
        files = _FASHION.find(data_dir, download, progress)
        return _read("fashion-mnist", files, _FASHION_CLASSES, seed, self.validation)


def _read(name: str, files: tuple[Path, ...], classes: tuple[str, ...], seed: int, validation: float) -> Data:
    train, test = _pair(*files[:2]), _pair(*files[2:])
    return assemble(name, train, test, classes, seed, validation)


def _pair(images: Path, labels: Path) -> Split:
    x, y = read_idx(images, (28, 28)), read_idx(labels, ())
    if len(x) != len(y):
        raise FileError(f"{images} holds {len(x)} images but {labels} {len(y)} labels; replace both.")
    if y.max() > 9:
        first = int((y > 9).argmax())
        raise FileError(f"{labels} gives sample {first} the label {y[first]}, above 9; it is corrupt. Replace it.")
    return Split(torch.from_numpy(x)[:, None], torch.from_numpy(y).long())
