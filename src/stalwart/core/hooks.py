"""Hooks on modules that live as long as a block."""

import contextlib
from collections.abc import Iterable, Iterator

from torch.utils.hooks import RemovableHandle


@contextlib.contextmanager
def removing(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take hooks off their modules at the end of the block."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
