"""alpha-CROWN: the slopes that CROWN leaves free are chosen by gradient ascent, for every row of a specification on its own.

Xu et al., 2021 (arXiv 2011.13824). Any lower line of a convex function through its kink is sound, so each unstable neuron has
a slope to choose, and the bound of CROWN is concave in few of them but differentiable in all. Intermediate intervals can be
improved in the same way, layer by layer: every end of every interval is a row with slopes of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stalwart.bounds.backward import BackwardWalk, at_entries, entries, in_chunks, lower_bound
from stalwart.bounds.interval import Interval
from stalwart.bounds.lines import Lines
from stalwart.bounds.patches import Patches
from stalwart.bounds.piecewise import Hinge, is_convex_hinge
from stalwart.bounds.propagation import Propagation, Refine
from stalwart.bounds.rows import RowBox, RowLines, box_minimum, climb
from stalwart.bounds.rules.base import View, batched_arguments
from stalwart.bounds.rules.elementwise import Function, function_of
from stalwart.bounds.rules.table import rule_of
from stalwart.core.numbers import require
from stalwart.graph import Node

_CHUNK_BYTES = 8 << 20
"""Slopes and coefficients of the rows that are optimised at a time; their gradients and moments take a few times as much."""


@dataclass(frozen=True)
class Ascent:
    """How slopes are optimised.

    Attributes:
        iterations: how often the bound is computed, at least 1; the first time with the slopes of CROWN.
        rate: Adam's first step size.
        decay: what the step size is multiplied by after each step.
    """

    iterations: int = 20
    rate: float = 0.1
    decay: float = 0.98

    def __post_init__(self) -> None:
        require(self.iterations >= 1, f"iterations must be at least 1, got {self.iterations}.")
        require(self.rate > 0 and self.decay > 0, "rate and decay must be positive.")


@dataclass(frozen=True, eq=False)
class Free:
    """An elementwise node whose lower slope may be chosen.

    Attributes:
        node: the operator.
        function: what it computes; a convex hinge, so that the lower line passes the kink and the upper line is the chord.
        usual: the lines of CROWN.
        open: where the interval holds the kink.
    """

    node: Node
    function: Hinge
    usual: Lines
    open: Tensor

    @property
    def ends(self) -> tuple[float, float]:
        """Return the smallest and the largest slope."""
        return float(self.function.left), float(self.function.right)


def free_nodes(known: Propagation, of: Node) -> list[Free]:
    """Return the ancestors of a node whose slopes may be chosen and matter: convex hinges with an open entry."""
    before = known.graph.ancestors(of) - {of}
    found = []
    for node in known.graph.nodes:
        if node not in before or node not in known.relaxed or not isinstance(rule_of(node), Function):
            continue
        function = function_of(node, known)
        if not is_convex_hinge(function) or (known.rigorous and function.at != 0):
            # Only at 0 is a line through the kink exact in floating point, whatever its slope.
            continue
        x = known.interval(batched_arguments(node)[0])
        open_ = ~function.linear_on(x.lower, x.upper)
        if open_.any():
            found.append(Free(node, function, known.lines(node), open_))
    return found


class Chosen(View):
    """What rules see of a propagation whose lines are replaced at some nodes.

    Args:
        known: the propagation.
        lines: lines [B, ...] or [S, B, ...] by node.
        batch: how often a propagation of one sample is repeated, None to leave it as it is.
    """

    def __init__(self, known: Propagation, lines: dict[Node, Lines], batch: int | None = None) -> None:
        self.known, self.batch, self._lines = known, batch, lines
        self.strategy = known.strategy

    def fixed(self, value: Any) -> Any:
        """Return what the propagation says."""
        return self.known.fixed(value)

    def interval(self, node: Node) -> Interval:
        """Return what the propagation says."""
        found = self.known.interval(node)
        return Interval(self._repeated(found.lower), self._repeated(found.upper))

    def lines(self, node: Node) -> Lines:
        """Return the chosen lines."""
        if node not in self._lines:
            usual = self.known.lines(node)
            self._lines[node] = Lines(*(self._repeated(part) for part in usual.parts))
        return self._lines[node]

    def channels_last(self, node: Node) -> Lines:
        """Return the chosen lines with the channels last."""
        lines = self.lines(node)
        last = -len(node.shape)
        return Lines(*(part.movedim(last, -1).contiguous() for part in lines.parts))

    def _repeated(self, value: Tensor) -> Tensor:
        return value if self.batch is None else value.expand(self.batch, *value.shape[1:])


class Rows(View):
    """What rules see of a propagation in a walk of which every row has lower slopes of its own.

    Attributes:
        free: where slopes are chosen, by node.
        own: the lines by node, made when a first walk reaches it; later walks must send the same rows.
    """

    def __init__(self, known: Propagation, free: list[Free]) -> None:
        self.known, self.strategy = known, known.strategy
        self.own: dict[Node, RowLines] = {}
        self.free = {one.node: one for one in free}
        self._box: RowBox | None = None

    def fixed(self, value: Any) -> Any:
        """Return what the propagation says, without its gradients."""
        found = self.known.fixed(value)
        return found.detach() if isinstance(found, Tensor) else found

    def interval(self, node: Node) -> Interval:
        """Return what the propagation says."""
        return self.known.interval(node)

    def lines(self, node: Node) -> Lines:
        """Return what the propagation says."""
        return self.known.lines(node)

    def channels_last(self, node: Node) -> Lines:
        """Return what the propagation says."""
        return self.known.channels_last(node)

    def passed(self, node: Node, coefficients: Tensor | Patches) -> tuple[Tensor | Patches, Tensor] | None:
        """Take each row's own lines at a node whose slopes are free."""
        if node not in self.free:
            return None
        if node not in self.own:
            one = self.free[node]
            at = float(one.function.at)
            kink = float(one.function.value(torch.tensor(at, dtype=torch.float64)))
            self.own[node] = RowLines.over(coefficients, one.usual, one.open, at, kink, one.ends)
            self.own[node].slopes.requires_grad_()
        out, added = self.own[node].passed(_each_alone(coefficients))
        if isinstance(coefficients, Patches):
            shape = coefficients.coefficients.shape
            return Patches(out.reshape(shape), coefficients.places, coefficients.image), added.reshape(shape[:2])
        return out, added

    def alone(self, node: Node) -> bool:
        """Tell whether slopes are free there."""
        return node in self.free

    def least(self, coefficients: Tensor | Patches) -> Tensor | None:
        """Minimise over a box with gradients; balls are left to the region."""
        if self.known.region.within is not None:
            return None
        if self._box is None:
            self._box = RowBox.over(coefficients, self.known.region.box)
        rows = _each_alone(coefficients)
        shape = coefficients.coefficients.shape if isinstance(coefficients, Patches) else coefficients.shape
        return box_minimum(rows, self._box.centre, self._box.reach).reshape(shape[:2])


def _each_alone(coefficients: Tensor | Patches) -> Tensor:
    """Return coefficients [B, S, ...], and those of patches as samples of one row each [B * S, 1, h, w, C]."""
    if isinstance(coefficients, Patches):
        return coefficients.coefficients.flatten(0, 1).unsqueeze(1)
    return coefficients


def ascend(
    known: Propagation, begin: Callable[[BackwardWalk], None], free: list[Free], how: Ascent
) -> tuple[Tensor, int]:
    """Return the best lower bounds [B, S] of the rows that ``begin`` sends, and how many numbers a row took on the way.

    Args:
        known: intervals of all nodes and the region.
        begin: starts the walk, as for :func:`stalwart.bounds.backward.lower_bound`.
        free: where slopes are chosen.
        how: the optimiser.
    """
    view, best = Rows(known, free), torch.tensor(-torch.inf)
    moments: list[tuple[Tensor, Tensor]] = []
    rate = how.rate
    for iteration in range(1, how.iterations + 1):
        walk, last = BackwardWalk(view), iteration == how.iterations
        with torch.set_grad_enabled(not last):
            found = lower_bound(known, begin, walk=walk)
        slopes = [one.slopes for one in view.own.values()]
        # A NaN does not replace a bound.
        best = torch.where(found > best, found, best).detach()
        if last or not slopes:
            break
        gradients = torch.autograd.grad(found, slopes, torch.ones_like(found))
        moments = moments or [(torch.zeros_like(one), torch.zeros_like(one)) for one in slopes]
        for node, slope, gradient, moment in zip(view.own, slopes, gradients, moments, strict=True):
            climb(slope, gradient, *moment, rate, iteration, view.free[node].ends)
        rate *= how.decay
    return best, walk.heaviest + sum(one.numel() for one in slopes) // max(1, best.numel())


def optimise(known: Propagation, rows: Tensor, how: Ascent) -> Tensor:
    """Return lower bounds [B, R] of rows [B, R, K] of the output over the region, never below those of CROWN.

    Args:
        known: the intervals of all nodes; they stay as they are.
        rows: the specification.
        how: the optimiser.
    """

    def begin(walk: BackwardWalk) -> None:
        walk.send(known.graph.output, rows.clone())

    with torch.no_grad():
        crown = lower_bound(known, begin)
        free = free_nodes(known, known.graph.output)
        # A NaN of CROWN is not replaced.
        return torch.where(crown.isnan(), crown, crown.fmax(ascend(known, begin, free, how)[0])) if free else crown


def refine(how: Ascent) -> Refine:
    """Return a refinement of intervals: CROWN, and then optimised slopes for the entries that are still open.

    Every end of every interval has slopes of its own. An entry that no longer holds a kink is left alone.
    """

    def improved(known: Propagation, node: Node, held: Interval) -> Interval:
        if node is known.graph.input:
            return held
        wanted = known.wanted(node)
        better = held.intersect(entries(known, node, wanted))
        if how.iterations == 1 or not free_nodes(known, node):
            return better
        still = torch.zeros_like(wanted)
        for user in (one for one in known.relaxed if node in one.parents):
            if isinstance(rule_of(user), Function):
                still |= ~function_of(user, known).linear_on(better.lower, better.upper)
            else:
                still |= wanted
        return better.intersect(_ascended(known, node, still, better, how))

    return improved


def _ascended(known: Propagation, node: Node, wanted: Tensor, held: Interval, how: Ascent) -> Interval:
    """Return better ends where ``wanted`` [B, ...] is true."""
    flat = wanted.flatten(1)
    count = int(flat.sum(1).max())
    order = flat.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
    free = free_nodes(known, node)
    lower, upper = held.lower.flatten(1).clone(), held.upper.flatten(1).clone()

    def bound(rows: Tensor) -> tuple[Tensor, int]:
        return ascend(known, at_entries(known, node, rows), free, how)

    for rows, found in in_chunks(order, _CHUNK_BYTES // lower.element_size(), bound):
        size = rows.shape[1]
        lower.scatter_(1, rows, torch.maximum(lower.gather(1, rows), found[:, :size]))
        upper.scatter_(1, rows, torch.minimum(upper.gather(1, rows), -found[:, size:]))
    return Interval(lower.reshape(held.lower.shape), upper.reshape(held.upper.shape))
