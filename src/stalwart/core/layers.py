"""Kinds of layers that more than one room deals with, and how stacks of them are walked and changed."""

from collections.abc import Iterator

from torch import nn

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers with a weight [out, ...] of which each output's row is applied to what it sees."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Batch norm, which can be folded into a layer with weights before it."""


def is_stack(module: nn.Module) -> bool:
    """Tell whether a module's forward pass is that of its children in a row."""
    plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return plain or getattr(module, "is_stack", False)


def in_order(layers: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of nested stacks in order, by module path; a layer with two places twice."""
    if is_stack(layers):
        for name, layer in layers._modules.items():  # named_children leaves out a layer's second place
            assert layer is not None
            yield from in_order(layer, joined(path, name))
    else:
        yield path, layers


def joined(path: str, name: str) -> str:
    """Return the module path of a child called ``name``; ``path`` is empty for the root."""
    return f"{path}.{name}" if path else name


def put(root: nn.Module, path: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one at a module path below ``root``."""
    owner, _, name = path.rpartition(".")
    setattr(root.get_submodule(owner), name, layer)
