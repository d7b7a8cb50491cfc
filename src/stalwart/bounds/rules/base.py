"""What a rule has to know: how intervals, linear functions of the output and linear functions of the input pass an operator."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stalwart.bounds.interval import Interval
from stalwart.bounds.lines import Lines
from stalwart.bounds.patches import Patches
from stalwart.bounds.taken import Taken
from stalwart.graph import Node
from stalwart.graph.graph import evaluate


@dataclass(frozen=True, eq=False)
class Forms:
    """Linear functions of the network's input that enclose a value: for each input coordinate i and entry of the value.

    ``lower_slope``, ``upper_slope`` are [B, n, ...] for n input coordinates, ``lower``, ``upper`` the intercepts [B, ...].
    """

    lower_slope: Tensor
    lower: Tensor
    upper_slope: Tensor
    upper: Tensor


class View(abc.ABC):
    """What a rule sees of the propagation it is part of."""

    strategy: str

    @abc.abstractmethod
    def fixed(self, value: Any) -> Any:
        """Return an argument's value: a tensor (or an interval of weights) for a fixed node, a literal as it is."""

    @abc.abstractmethod
    def interval(self, node: Node) -> Interval:
        """Return the best known interval of a node that depends on the input."""

    @abc.abstractmethod
    def lines(self, node: Node) -> Lines:
        """Return the lines in use for an elementwise node."""

    @abc.abstractmethod
    def channels_last(self, node: Node) -> Lines:
        """Return the same lines as [B, H, W, C]."""

    def passing(self, node: Node, last: bool = False) -> tuple[Lines, bool]:
        """Return the lines that compiled loops take, ``last`` for [B, H, W, C], and whether they are lines of the operand
        without its bias, which the walk then leaves out.
        """
        return self.channels_last(node) if last else self.lines(node), False

    def passed(self, node: Node, coefficients: Tensor | Patches) -> tuple[Tensor | Patches, Tensor] | None:
        """Return what lines of each row's own make of coefficients and what they add to the constants [B, S].

        None where all rows take the same lines.
        """
        return None

    def alone(self, node: Node) -> bool:
        """Tell whether rows take lines of their own at an elementwise node."""
        return False

    def least(self, coefficients: Tensor | Patches) -> Tensor | None:
        """Return the smallest values [B, S] over the inputs, where this view has a way of its own to find them."""
        return None


class Walk(abc.ABC):
    """A backward walk: rules hand on coefficients, which then are the receiver's to overwrite, and add to the constants.

    Attributes:
        view: what rules see.
        counted: nodes whose bias is among the constants already.
    """

    view: View
    counted: set[Node]

    @abc.abstractmethod
    def send(self, parent: Node, coefficients: Tensor | Patches | Taken) -> None:
        """Add coefficients [B, S, ...] to those of a parent."""

    @abc.abstractmethod
    def add(self, constant: Tensor) -> None:
        """Add to the constants [B, S]."""

    @abc.abstractmethod
    def room(self, node: Node, like: Tensor, *shape: int) -> Tensor:
        """Return an empty tensor for what a node sends on."""

    @abc.abstractmethod
    def running(self, like: Tensor) -> Tensor:
        """Return constants [B, S] of 64 bits for compiled loops to add to, for coefficients [B, S, ...]."""


class Rule:
    """Base of all rules.

    Attributes:
        relaxed: whether the rule encloses a nonlinear operator, so that tighter intervals of its parents make it tighter.
        entrywise: whether each entry of the value depends on one entry of a single operand of the same size.
        options: keyword arguments of the operator that the rule heeds; None for all, where it runs the operator itself.
    """

    relaxed: ClassVar[bool] = False
    entrywise: ClassVar[bool] = False
    options: ClassVar[frozenset[str] | None] = frozenset()

    def interval(self, node: Node, view: View) -> Interval:
        """Return an interval of the node's value from those of its parents."""
        raise NotImplementedError

    def backward(self, node: Node, coefficients: Tensor, walk: Walk) -> None:
        """Bound <coefficients, value> from below by linear functions of the parents; coefficients are [B, S, ...]."""
        raise NotImplementedError

    def patched(self, node: Node, patches: Patches, walk: Walk) -> bool:
        """Do what ``backward`` does for patches, and tell whether that was possible; dense coefficients serve if not."""
        return False

    def taken(self, node: Node, taken: Taken, walk: Walk) -> bool:
        """Do the same for rows of a matrix that are not copied yet."""
        return False

    def start(self, node: Node, rows: Tensor, signs: Tensor, walk: Walk) -> bool:
        """Begin a walk at single entries of the value, without a one-hot tensor, and tell whether that was possible.

        ``rows`` are flat places [B, S] in the value, ``signs`` [S] their coefficients.
        """
        return False

    def forward(self, node: Node, forms: Callable[[Node], Forms], view: View) -> Forms:
        """Enclose the node's value by linear functions of the network's input."""
        raise NotImplementedError


def batched_arguments(node: Node) -> list[Node]:
    """Return the parents that depend on the input, each once."""
    return list(dict.fromkeys(parent for parent in node.parents if parent.batched))


def apply(node: Node, values: dict[Node, Tensor], view: View, end: str = "lower") -> Tensor:
    """Run the operator on these values of the parents that depend on the input, and on one end of weights that vary."""

    def value_of(parent: Node) -> Any:
        value = values[parent] if parent.batched else view.fixed(parent)
        return getattr(value, end) if isinstance(value, Interval) else value

    found: Tensor = evaluate(node, value_of)
    return found


def dot(coefficients: Tensor, value: Tensor) -> Tensor:
    """Return Σ coefficients * value [B, S], value [B or 1, ...]."""
    batch, rows = coefficients.shape[:2]
    if len(value) == 1:
        # One vector for all samples is one product, where a batch of small ones would be several times slower.
        return torch.mv(coefficients.reshape(batch * rows, -1), value.reshape(-1)).reshape(batch, rows)
    return torch.matmul(coefficients.reshape(batch, rows, -1), value.reshape(value.shape[0], -1, 1)).squeeze(-1)


def least(coefficients: Tensor, value: Any, shape: tuple[int, ...]) -> Tensor:
    """Return the smallest Σ coefficients * v [B, S] for a fixed v, or over an interval of them, broadcast to ``shape``."""
    if isinstance(value, Interval):
        centre, reach = (part.expand(1, *shape) for part in (value.centre, value.reach))
        return dot(coefficients, centre) - dot(coefficients.abs(), reach)
    plain = torch.as_tensor(value, dtype=coefficients.dtype, device=coefficients.device)
    return dot(coefficients, plain.expand(1, *shape))


def ends_of(value: Any) -> Interval:
    """Return a fixed value, tensor or number, as an interval; intervals as they are."""
    if isinstance(value, Interval):
        return value
    plain = torch.as_tensor(value)
    return Interval(plain, plain)


def each_row(function: Callable[[Tensor], Tensor], coefficients: Tensor) -> Tensor:
    """Apply a function of a batch to [B, S, ...] as one batch of B * S."""
    out = function(coefficients.flatten(0, 1))
    return out.unflatten(0, coefficients.shape[:2])
