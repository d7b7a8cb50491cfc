"""The registry table of datasets."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stalwart.core.registry import build
from stalwart.data.splits import Data

DATASETS: dict[str, str] = {
    "digits": "stalwart.data.digits:Digits",
    "mnist": "stalwart.data.mnist:Mnist",
    "fashion-mnist": "stalwart.data.mnist:FashionMnist",
    "cifar10": "stalwart.data.cifar:Cifar10",
    "cifar100": "stalwart.data.cifar:Cifar100",
    "svhn": "stalwart.data.svhn:Svhn",
    "digits-events": "stalwart.data.event_sets:DigitsEvents",
    "nmnist": "stalwart.data.event_sets:NMnist",
    "dvs-gesture": "stalwart.data.event_sets:DvsGesture",
    "ecg5000": "stalwart.data.ecg:Ecg5000",
    "npz": "stalwart.data.arrays:Npz",
    "folder": "stalwart.data.folder:Folder",
}


def load(
    name: str,
    options: Mapping[str, Any] = MappingProxyType({}),
    seed: int = 0,
    data_dir: Path | str | None = None,
    download: bool = True,
    progress: bool = False,
) -> Data:
    """Load a dataset by name, as its training, validation and test parts.

    Args:
        name: a key of :data:`DATASETS`.
        options: the fields of that dataset's record, such as ``{"validation": "1/10"}``.
        seed: which training samples become the validation part depends on it; the test part never does.
        data_dir: the first folder to search; then ``$STALWART_DATA``, the system's and the user's cache.
        download: fetch a published dataset that is not found.
        progress: report a download on stderr.

    Raises:
        UsageError: an unknown name or option, or an impossible value.
        FileError: a file is missing, corrupt or truncated.
        InputError: a user's own arrays hold unusable values.

    Example:
        >>> data = load("digits", {"validation": 0.1})
        >>> data.shape, len(data.classes)
        ((1, 8, 8), 10)
    """
    dataset = build("dataset", DATASETS, name, options)
    folder = None if data_dir is None else Path(data_dir)
    return dataset.load(seed=seed, data_dir=folder, download=download, progress=progress)
