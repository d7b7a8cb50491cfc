"""Models from elsewhere: a factory in any importable module, and its weights."""

import importlib
import sys
from pathlib import Path

from torch import nn

from stalwart.core.errors import UsageError
from stalwart.core.tensors import load_weights


def foreign_model(path: str, weights: Path | None) -> nn.Module:
    """Import ``pkg.module:factory``, call it without arguments and load its weights.

    Raises:
        UsageError: there is no such module or factory, or it does not return an ``nn.Module``.
        FileError: the weights are damaged or do not fit.
    """
    name, colon, attribute = path.partition(":")
    if not colon or not name or not attribute:
        raise UsageError(f"--model '{path}' must read pkg.module:factory.")
    # As `python -m` does, so that a module in the current folder is found.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    # Whatever goes wrong in a stranger's module is the call's fault, not this library's.
    try:
        factory = getattr(importlib.import_module(name), attribute)
    except Exception as problem:
        raise UsageError(f"--model '{path}': {problem}. Name an importable module and a factory in it.") from problem
    try:
        model = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    except Exception as problem:
        raise UsageError(
            f"--model '{path}': calling it failed: {problem}. Name a factory that needs no arguments."
        ) from problem
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model '{path}' gave a {type(model).__name__}; it must give a torch.nn.Module.")
    if weights is not None:
        load_weights(model, weights)
    return model.eval()
