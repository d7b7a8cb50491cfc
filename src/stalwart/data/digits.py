"""The handwritten digits that come with scikit-learn: 1797 images of 8 x 8, no download."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stalwart.core.numbers import Number
from stalwart.data.splits import Data, Split, assemble, require_fraction


@dataclass(frozen=True)
class Digits:
    """Scikit-learn's handwritten digits, [1, 8, 8], 10 classes; a quarter is the test part, the same for every seed.

    Args:
        validation: the part of what is not test that is held out for validation, in [0, 1); 0.2 makes 60/15/25 %.

    Raises:
        UsageError: ``validation`` is not in [0, 1).

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (UCI), 1998; the copy in scikit-learn.
    """

    validation: Number = 0.2

    def __post_init__(self) -> None:
        require_fraction(self.validation, "validation")

    def load(self, seed: int = 0, data_dir: Path | None = None, download: bool = True, progress: bool = False) -> Data:
        """Return the data; only ``seed`` matters, since nothing is read from elsewhere."""
        # Imported here: scikit-learn takes a second to import, which no other dataset needs.
        from sklearn.datasets import load_digits

        raw = load_digits()
        # Ink is counted from 0 to 16 in each cell.
        pixels = np.round(raw.images * (255 / 16)).astype(np.uint8)
        whole = Split(torch.from_numpy(pixels)[:, None], torch.from_numpy(raw.target.astype(np.int64)))
        return assemble("digits", whole, 0.25, tuple(map(str, range(10))), seed, self.validation)
