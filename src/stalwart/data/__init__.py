"""Datasets as tensors in memory, split, batched and augmented the same way for the same seed."""

from stalwart.data.augment import Augment
from stalwart.data.batches import epoch_batches
from stalwart.data.splits import Data, Split
from stalwart.data.table import DATASETS, load

__all__ = ["DATASETS", "Augment", "Data", "Split", "epoch_batches", "load"]
