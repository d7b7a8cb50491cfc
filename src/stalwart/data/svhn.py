"""Street View House Numbers, format 2: two MATLAB files of cropped digits."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stalwart.core.errors import FileError
from stalwart.core.numbers import Number
from stalwart.data.download import Remote
from stalwart.data.locate import Source
from stalwart.data.splits import Data, Split, assemble, require_fraction

_FILES = ("train_32x32.mat", "test_32x32.mat")
_SUMS = ("e26dedcc434d2e4c54c9b2d4a06d8373", "eb5a983be6a315427106f1b164d9cef3")
_SOURCE = Source(
    name="svhn",
    remotes=tuple(
        Remote(file, f"http://ufldl.stanford.edu/housenumbers/{file}", md5)
        for file, md5 in zip(_FILES, _SUMS, strict=True)
    ),
    layouts=(_FILES,),
    folders=("svhn", "SVHN"),
)


@dataclass(frozen=True)
class Svhn:
    """SVHN: house numbers cropped to one digit, [3, 32, 32], 73,257 to train on and 26,032 to test on.

    The publisher's label 10 stands for the digit 0 and becomes 0.

    Args:
        validation: the part of the training set that is held out for validation, in [0, 1).

    Raises:
        UsageError: ``validation`` is not in [0, 1).

    Source: Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011.
    """

    validation: Number = 0.1

    def __post_init__(self) -> None:
        require_fraction(self.validation, "validation")

    def load(self, seed: int = 0, data_dir: Path | None = None, download: bool = True, progress: bool = False) -> Data:
        """Find and read both files; see :func:`stalwart.data.load`."""
        train, test = _SOURCE.find(data_dir, download, progress)
        return assemble("svhn", _read(train), _read(test), tuple(map(str, range(10))), seed, self.validation)


def _read(path: Path) -> Split:
    # Imported here: no other dataset needs scipy's readers.
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["X", "y"])
        x, y = np.asarray(content["X"]), np.asarray(content["y"]).reshape(-1)
    except Exception as problem:  # scipy's parser lets whatever a damaged file provokes pass through
        raise FileError(
            f"cannot read X and y from {path} ({type(problem).__name__}: {problem}); it is damaged, truncated or "
            "another kind of file. Replace it."
        ) from problem
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3) or len(y) != x.shape[3] or len(y) == 0:
        raise FileError(
            f"{path} holds X {x.dtype} {list(x.shape)} and {len(y)} labels, not uint8 [32, 32, 3, N] and N labels; "
            "it is another dataset. Replace it."
        )
    bad = ~np.isin(y, np.arange(1, 11))
    if bad.any():
        first = int(bad.argmax())
        raise FileError(f"{path} gives sample {first} the label {y[first]}, not 1 to 10; it is corrupt. Replace it.")
    images = np.ascontiguousarray(x.transpose(3, 2, 0, 1))
    return Split(torch.from_numpy(images), torch.from_numpy(y.astype(np.int64) % 10))
