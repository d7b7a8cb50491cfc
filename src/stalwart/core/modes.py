"""Modes that hold for the length of a block: evaluation, and spiking networks run step by step."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from torch import nn

_STEPWISE: ContextVar[bool] = ContextVar("stepwise", default=False)
_ELEMENTARY: ContextVar[bool] = ContextVar("elementary", default=False)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every submodule in evaluation mode inside the block and restore each one's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def stepwise() -> Iterator[None]:
    """Let spiking networks run one time step after the other, as elementary operators, inside the block.

    Their outputs are the same; what changes is that a traced graph holds operators which bounds know, and no fused call.
    """
    token = _STEPWISE.set(True)
    try:
        yield
    finally:
        _STEPWISE.reset(token)


@contextlib.contextmanager
def elementary() -> Iterator[None]:
    """Let spiking networks run step by step as comparisons, products and sums alone, which any format can write down."""
    token = _ELEMENTARY.set(True)
    try:
        with stepwise():
            yield
    finally:
        _ELEMENTARY.reset(token)


def is_elementary() -> bool:
    """Tell whether steps of neurons are to be plain operators."""
    return _ELEMENTARY.get()


def is_stepwise() -> bool:
    """Tell whether spiking networks are to run step by step."""
    return _STEPWISE.get()
