"""What a result was computed with, in words that say nothing of who computed it or where."""

import importlib.metadata
import platform
import warnings

import numpy as np
import torch


def environment() -> dict[str, str]:
    """Return versions, platform, CPU threads and the GPU's name; no user name, host name or path.

    Returns:
        ``python``, ``torch``, ``numpy`` and ``stalwart`` versions, ``platform`` (system and architecture),
        ``threads`` (those torch uses within one operator) and ``gpu`` (``"none"`` without one).
    """
    return {
        "stalwart": _version("stalwart"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        "gpu": _gpu(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed as a package)"


def _gpu() -> str:
    with warnings.catch_warnings():
        # An old driver makes torch warn when it is asked; here that only means that there is no usable GPU.
        warnings.simplefilter("ignore")
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
