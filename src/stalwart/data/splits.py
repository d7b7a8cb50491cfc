"""What every dataset becomes: labelled samples in memory, in three parts."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.core.checks import check_labels
from stalwart.core.errors import InputError
from stalwart.core.numbers import require
from stalwart.core.random import generator

TEST_SEED = 0
"""Test parts that no publisher fixed are cut with this seed, whatever the run's: a model trained under one seed must
never meet its own training samples when it is tested under another."""


@dataclass(frozen=True)
class Split:
    """Labelled samples in memory.

    Args:
        x: samples [N, *d]: bytes (uint8, 0 to 255) or floats in [0, 1]; images are [N, C, H, W].
        y: labels [N], int64.

    Raises:
        InputError: there is not one label a sample, or a label is negative.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.dtype != torch.uint8 and not self.x.is_floating_point():
            raise InputError(f"samples must be uint8 or floats in [0, 1], got {self.x.dtype}; convert them first.")
        check_labels(self.y, len(self.x))

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.y)

    def images(self, index: Tensor | slice) -> Tensor:
        """Return the samples at ``index`` (positions [B] on any device, or a slice) as float32 [B, *d] in [0, 1]."""
        # index_select copies whole samples; x[index] would compute an address for every byte.
        chosen = self.x[index] if isinstance(index, slice) else self.x.index_select(0, index.to(self.x.device))
        if chosen.dtype == torch.uint8:
            return chosen.float().div_(255)
        # A slice is a view: whoever changes the batch must not change the stored samples.
        return chosen.to(torch.float32, copy=isinstance(index, slice))

    def batch(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return ``images(index)`` and their labels [B]."""
        y = self.y[index] if isinstance(index, slice) else self.y.index_select(0, index.to(self.y.device))
        return self.images(index), y

    def to(self, device: torch.device | str) -> "Split":
        """Return the same samples on ``device``."""
        return Split(self.x.to(device), self.y.to(device))

    def take(self, n: int) -> "Split":
        """Return the first ``n`` samples, or all if there are fewer; memory is shared.

        Raises:
            UsageError: ``n`` is negative.
        """
        require(n >= 0, f"cannot take {n} samples; ask for 0 or more.")
        return Split(self.x[:n], self.y[:n])

    def loader(self, batch_size: int) -> "Loader":
        """Return the batches of this split in order; the last one may be smaller."""
        return Loader(self, batch_size)


@dataclass(frozen=True)
class Loader:
    """The batches ``(x float32 [B, *d] in [0, 1], y [B])`` of a split, in order, as often as they are iterated.

    Raises:
        UsageError: ``batch_size`` is below 1.
    """

    split: Split
    batch_size: int

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"batch_size must be at least 1, got {self.batch_size}.")

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.split) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches."""
        for start in range(0, len(self.split), self.batch_size):
            yield self.split.batch(slice(start, start + self.batch_size))


@dataclass(frozen=True)
class Data:
    """A dataset: its three parts, the names of its classes and the shape of one sample (without the batch axis)."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    shape: tuple[int, ...]


def holdout(y: Tensor, count: int, seed: int, what: str) -> tuple[Tensor, Tensor]:
    """Choose ``count`` samples at random so that each class gives its share, rounded down or up.

    The samples, shuffled and then sorted by class, form a row; position i is chosen where floor((i + 1) count / N)
    exceeds floor(i count / N), that is, at equal distances (systematic sampling).

    Args:
        y: labels [N].
        count: how many to hold out, 0 to N.
        seed: the root seed; ``what`` names the stream drawn from it.

    Returns:
        the positions that stay [N - count] and those held out [count], both ascending.
    """
    n = len(y)
    shuffled = torch.randperm(n, generator=generator(seed, "data", what))
    row = shuffled[y[shuffled].argsort(stable=True)]
    steps = torch.arange(n + 1) * count // max(n, 1)
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[row] = steps[1:] > steps[:-1]
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def require_fraction(value: float, what: str) -> None:
    """Refuse a part of the data that is not in [0, 1).

    Raises:
        UsageError: it is not.
    """
    require(0.0 <= value < 1.0, f"{what} is the part of the data held out and must be in [0, 1), got {value:g}.")


def assemble(
    name: str, train: Split, test: Split | float, classes: tuple[str, ...], seed: int, validation: float
) -> Data:
    """Cut the validation part (and the test part, where ``test`` is a fraction) from the training samples.

    Args:
        name: the name of the result.
        train: all samples that are not the publisher's test set.
        test: the publisher's test set, or the part in [0, 1) to hold out with :data:`TEST_SEED`.
        classes: the K class names.
        seed: decides which samples become the validation part.
        validation: the part in [0, 1) of what is left to train on.

    Raises:
        InputError: a label is not in [0, K), the parts differ in shape, or no training sample is left.
    """
    if isinstance(test, float):
        stay, held = holdout(train.y, round(test * len(train)), TEST_SEED, "test")
        test = _pick(train, held)
        train = _pick(train, stay)
    if train.x.shape[1:] != test.x.shape[1:]:
        raise InputError(
            f"{name}: training samples have shape {list(train.x.shape[1:])} but test samples {list(test.x.shape[1:])}; "
            "they must agree."
        )
    for part in (train, test):
        check_labels(part.y, len(part), len(classes))
    stay, held = holdout(train.y, round(validation * len(train)), seed, "validation")
    if len(stay) == 0:
        raise InputError(
            f"{name} has {len(train)} samples to train on and {len(held)} of them are held out: none is left. "
            "Give more data or hold out less."
        )
    shape = tuple(train.x.shape[1:])
    return Data(name, _pick(train, stay), _pick(train, held), test, classes, shape)


def _pick(split: Split, index: Tensor) -> Split:
    return Split(split.x.index_select(0, index), split.y.index_select(0, index))
