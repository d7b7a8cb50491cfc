"""The backward walk of CROWN: from rows of coefficients at one node to a linear function of the input, and its minimum.

Lower bounds only: an upper bound of <c, z> is minus the lower bound of <-c, z>.
"""

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from stalwart.bounds import rounding
from stalwart.bounds.interval import Interval
from stalwart.bounds.patches import Patches
from stalwart.bounds.propagation import Propagation
from stalwart.bounds.rows import box_minimum
from stalwart.bounds.rules.base import Forms, View, Walk, dot
from stalwart.bounds.rules.table import rule_of
from stalwart.bounds.taken import Taken
from stalwart.graph import Node

Found = TypeVar("Found")

_CHUNK_BYTES = 5 << 20
"""Coefficients of this size stay in the cache; with smaller ones, small operators take longer than the products."""


class BackwardWalk(Walk):
    """Coefficients [B, S, ...] at the nodes still to be passed, and the constants [B, S] collected so far.

    Args:
        view: what rules see.
        rooms: memory by node, taken by one walk after another, each of which overwrites what the one before sent on. New
            memory for each of many walks can cost a page fault a page, by the state of the allocator.

    Attributes:
        heaviest: the largest number of coefficients that any row had on the way.
        lost: what rounding may have cost, [B, S], where that is asked for.
    """

    def __init__(self, view: View, rooms: dict[Node, Tensor] | None = None) -> None:
        self.view = view
        self.counted: set[Node] = set()
        self.pending: dict[Node, Tensor | Patches | Taken] = {}
        self.constant: Tensor | float = 0.0
        self.heaviest = 1
        self.lost: Tensor | float = 0.0
        self._running: Tensor | None = None
        self._rooms = rooms

    def send(self, parent: Node, coefficients: Tensor | Patches | Taken) -> None:
        """Add coefficients to those of a parent."""
        held = self.pending.get(parent)
        if isinstance(coefficients, Taken):
            assert held is None, "rows of a matrix begin a walk"
            self.pending[parent] = coefficients
            self.heaviest = max(self.heaviest, coefficients.matrix.shape[1])
            return
        if isinstance(coefficients, Patches) and not (
            coefficients.is_small and (held is None or isinstance(held, Patches))
        ):
            coefficients = coefficients.dense()
        if isinstance(held, Patches) and isinstance(coefficients, Tensor):
            held = held.dense()
        self.pending[parent] = coefficients if held is None else held + coefficients  # type: ignore[operator]
        values = coefficients.coefficients if isinstance(coefficients, Patches) else coefficients
        self.heaviest = max(self.heaviest, math.prod(values.shape[2:]))

    def add(self, constant: Tensor) -> None:
        """Add to the constants."""
        self.constant = self.constant + constant

    def room(self, node: Node, like: Tensor, *shape: int) -> Tensor:
        """Return an empty tensor, of shared memory if there is any."""
        if self._rooms is None:
            return like.new_empty(shape)
        size, held = math.prod(shape), self._rooms.get(node)
        if held is None or held.numel() < size:
            held = self._rooms[node] = like.new_empty(size)
        return held[:size].view(shape)

    def running(self, like: Tensor) -> Tensor:
        """Return constants of 64 bits that compiled loops add to."""
        if self._running is None:
            self._running = torch.zeros(like.shape[:2], dtype=torch.float64, device=like.device)
        return self._running

    def result(self) -> Tensor:
        """Return all constants together."""
        if self._running is not None and isinstance(self.constant, Tensor):
            return (self._running + self.constant).to(self.constant.dtype)
        assert isinstance(self.constant, Tensor)
        return self.constant


def lower_bound(
    known: Propagation,
    begin: Callable[[BackwardWalk], None],
    view: View | None = None,
    walk: BackwardWalk | None = None,
    depth: int | None = None,
    end: str = "interval",
) -> Tensor:
    """Return lower bounds [B, S] of the linear functions that ``begin`` puts into a walk.

    Args:
        known: intervals of all nodes, and the region.
        begin: sends the first coefficients.
        view: what rules see of lines and intervals, ``known`` by default.
        walk: a new walk to use, for who wants to look at it afterwards.
        depth: how many nonlinear operators to pass before stopping; None walks to the input.
        end: what stands for a node where the walk stops, its "interval" or its linear "forms".
    """
    walk = BackwardWalk(known if view is None else view) if walk is None else walk
    begin(walk)
    passed: dict[Node, int] = {}
    for node in reversed(known.graph.nodes):
        coefficients = walk.pending.pop(node, None)
        if coefficients is None:
            continue
        stops = node is known.graph.input or (depth is not None and passed.get(node, 0) >= depth)
        if isinstance(coefficients, Taken):
            if not (stops or known.rigorous) and rule_of(node).taken(node, coefficients, walk):
                _count(node, known, passed)
                continue
            coefficients = coefficients.dense()
        if known.rigorous:
            if isinstance(coefficients, Patches):
                coefficients = coefficients.dense()
            walk.lost = walk.lost + _lost(known, node, coefficients)
        least = walk.view.least(coefficients) if node is known.graph.input else None
        if least is not None:
            walk.add(least)
            continue
        if isinstance(coefficients, Patches):
            if node is known.graph.input and known.region.within is None:
                known.region.add_minimum(coefficients, walk.running(coefficients.coefficients))
                continue
            if not stops and rule_of(node).patched(node, coefficients, walk):
                _count(node, known, passed)
                continue
            coefficients = coefficients.dense()
        if node is known.graph.input:
            walk.add(known.region.minimum(coefficients))
        elif stops and node in known.relaxed:
            if end == "interval":
                x = known.interval(node)
                walk.add(box_minimum(coefficients, x.centre, x.reach))
            else:
                walk.add(_through_forms(known, coefficients, known.forms(node)))
        else:
            _count(node, known, passed)
            rule_of(node).backward(node, coefficients, walk)
    return walk.result() - walk.lost


def _lost(known: Propagation, node: Node, coefficients: Tensor) -> Tensor:
    """Return what rounding may cost from this node to the next."""
    size = rounding.magnitude(known.interval(node))
    if node is not known.graph.input:
        size = torch.maximum(size, rounding.terms(node, known))
    return rounding.gamma(rounding.roundings(node, known), size.dtype) * dot(coefficients.abs(), size)


def _count(node: Node, known: Propagation, passed: dict[Node, int]) -> None:
    """Note for each parent how many nonlinear operators lie between it and the start."""
    level = passed.get(node, 0) + (node in known.relaxed)
    for parent in node.parents:
        passed[parent] = max(passed.get(parent, 0), level)


def _through_forms(known: Propagation, coefficients: Tensor, forms: Forms) -> Tensor:
    above, below = coefficients.clamp_min(0).flatten(2), coefficients.clamp_max(0).flatten(2)
    slopes = above @ forms.lower_slope.flatten(2).transpose(1, 2) + below @ forms.upper_slope.flatten(2).transpose(1, 2)
    constant = dot(above, forms.lower.flatten(1)) + dot(below, forms.upper.flatten(1))
    return constant + known.region.minimum(slopes.unflatten(2, known.region.box.lower.shape[1:]))


def entries(
    known: Propagation, node: Node, wanted: Tensor, depth: int | None = None, end: str = "interval"
) -> Interval:
    """Return the walk's own interval of a node's entries where ``wanted`` [B, ...] is true, and the known one elsewhere."""
    held = known.interval(node)
    flat = wanted.flatten(1)
    count = int(flat.sum(1).max())
    if count == 0:
        return held
    # Every sample gets as many rows as the neediest one; the rest of another one's rows are entries that need none.
    order = flat.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
    lower, upper = held.lower.flatten(1), held.upper.flatten(1)
    rooms: dict[Node, Tensor] = {}
    chunks = in_chunks(
        order, _CHUNK_BYTES // lower.element_size(), lambda rows: _entries(known, node, rows, rooms, depth, end)
    )
    found = [chunk for _, chunk in chunks]
    asked = flat.gather(1, order)
    low = torch.where(asked, torch.cat([one.lower for one in found], 1), lower.gather(1, order))
    high = torch.where(asked, torch.cat([one.upper for one in found], 1), upper.gather(1, order))
    lower, upper = lower.scatter(1, order, low), upper.scatter(1, order, high)
    return Interval(lower.reshape(held.lower.shape), upper.reshape(held.upper.shape))


def in_chunks(
    order: Tensor, budget: int, bound: Callable[[Tensor], tuple[Found, int]]
) -> Iterator[tuple[Tensor, Found]]:
    """Yield the columns of ``order`` [B, S] in chunks, each with what ``bound`` finds for both ends of its entries.

    Chunks that do not fit in memory are halved.

    Args:
        order: flat places of entries.
        budget: how many numbers the rows of a chunk may take together.
        bound: returns what was found, and how many numbers a row took.

    Raises:
        RuntimeError, MemoryError: even one entry does not fit.
    """
    # How many numbers a row needs shows in a first, small chunk.
    begun, step = 0, max(1, 32 // len(order))
    while begun < order.shape[1]:
        rows = order[:, begun : begun + step]
        try:
            found, numbers = bound(rows)
        except (RuntimeError, MemoryError) as problem:
            if step == 1 or not out_of_memory(problem):
                raise
            step = max(1, step // 2)
            continue
        yield rows, found
        begun += rows.shape[1]
        step = max(1, budget // (2 * len(order) * numbers))


def _entries(
    known: Propagation, node: Node, rows: Tensor, rooms: dict[Node, Tensor], depth: int | None, end: str
) -> tuple[Interval, int]:
    count = rows.shape[1]
    walk = BackwardWalk(known, rooms)
    found = lower_bound(known, at_entries(known, node, rows), walk=walk, depth=depth, end=end)
    return Interval(found[:, :count], -found[:, count:]), walk.heaviest


def at_entries(known: Propagation, node: Node, rows: Tensor) -> Callable[[BackwardWalk], None]:
    """Return what begins a walk at z and then at -z of a node's entries, ``rows`` their flat places [B, S]."""
    like = known.interval(node).lower
    count = rows.shape[1]
    signs = torch.cat([like.new_ones(count), -like.new_ones(count)])
    both = torch.cat([rows, rows], 1)

    def begin(walk: BackwardWalk) -> None:
        # The operator before a nonlinear one is usually linear, and its rows are at hand.
        if node.op != "input" and node not in known.relaxed and rule_of(node).start(node, both, signs, walk):
            return
        one_hot = like.new_zeros(len(like), 2 * count, math.prod(node.shape))
        one_hot.scatter_(2, both.unsqueeze(-1), signs.expand(len(like), -1).unsqueeze(-1))
        walk.send(node, one_hot.unflatten(2, node.shape))

    return begin


def out_of_memory(problem: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on the CPU or a GPU."""
    return isinstance(problem, torch.cuda.OutOfMemoryError | MemoryError) or "not enough memory" in str(problem)
