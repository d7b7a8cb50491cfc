"""A backward walk that remembers what some nodes received."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from stalwart.bounds.backward import BackwardWalk
from stalwart.bounds.patches import Patches
from stalwart.bounds.rules.base import View
from stalwart.bounds.taken import Taken
from stalwart.graph import Node


class Watch(BackwardWalk):
    """A walk that keeps the coefficients [B, S, ...] at some nodes in ``seen``, without gradients."""

    def __init__(self, view: View, nodes: Iterable[Node]) -> None:
        super().__init__(view)
        self.seen: dict[Node, Tensor] = {}
        self.pending = _Pending(frozenset(nodes), self.seen)


class _Pending(dict[Node, Any]):
    """Pending coefficients that are copied when their walk takes them."""

    def __init__(self, nodes: frozenset[Node], seen: dict[Node, Tensor]) -> None:
        super().__init__()
        self.nodes, self.seen = nodes, seen

    def pop(self, key: Node, default: Any = None) -> Any:
        found = super().pop(key, default)
        if key in self.nodes and found is not None:
            if isinstance(found, Patches | Taken):
                found = found.dense()
            # Compiled loops overwrite what they are given.
            self.seen[key] = found.detach().clone()
        return found
