"""alpha-CROWN: the slopes that CROWN leaves free are chosen by gradient ascent, for every row of a specification on its own.

Xu et al., 2021 (arXiv 2011.13824). Any lower line of a convex function through its kink is sound, so each unstable neuron has
a slope to choose, and the bound of CROWN is concave in few of them but differentiable in all. Intermediate intervals can be
improved in the same way, layer by layer: every end of every interval is a row with slopes of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stalwart.bounds.backward import BackwardWalk, at_entries, entries, lower_bound
from stalwart.bounds.interval import Interval
from stalwart.bounds.lines import Lines
from stalwart.bounds.piecewise import Hinge, PiecewiseLinear
from stalwart.bounds.propagation import Propagation, Refine
from stalwart.bounds.rules.base import View, batched_arguments
from stalwart.bounds.rules.elementwise import Function, function_of, settled
from stalwart.bounds.rules.table import rule_of
from stalwart.core.numbers import require
from stalwart.graph import Node

_SLOPE_BYTES = 64 << 20
"""Slopes optimised at a time; their gradients and moments take four times as much."""


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


@dataclass
class Adam:
    """Ascent steps on tensors that are changed in place (Kingma and Ba, 2015, with beta 0.9 and 0.999)."""

    rate: float
    decay: float
    _moments: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _steps: int = 0

    @torch.no_grad()
    def step(self, values: list[Tensor], gradients: list[Tensor], scales: list[float] | None = None) -> None:
        """Move each value up its gradient; ``scales`` are factors on the step size, one a tensor."""
        if not self._moments:
            self._moments = [(torch.zeros_like(one), torch.zeros_like(one)) for one in values]
        self._steps += 1
        first, second = 1 - 0.9**self._steps, 1 - 0.999**self._steps
        for at, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
            mean, square = self._moments[at]
            mean.lerp_(gradient, 0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            rate = self.rate * (1.0 if scales is None else scales[at])
            value.addcdiv_(mean, square.div(second).sqrt_().add_(1e-8), value=rate / first)
        self.rate *= self.decay


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

    def lines(self, slope: Tensor) -> Lines:
        """Return lines for lower slopes [S, B, ...]; settled entries keep their own."""
        lower = torch.where(self.open, slope, self.usual.lower_slope)
        if self.function.at == 0:
            # The line through the kink at 0 has no intercept, and a settled neuron has none either.
            low = self.usual.lower_intercept.expand_as(lower)
        else:
            at = float(self.function.at)
            low = torch.where(
                self.open, (self.function.left + self.function.right - lower) * at, self.usual.lower_intercept
            )
        return Lines(lower, low, self.usual.upper_slope, self.usual.upper_intercept)


def free_nodes(known: Propagation, of: Node) -> list[Free]:
    """Return the ancestors of a node whose slopes may be chosen and matter: convex hinges with an open entry."""
    before = known.graph.ancestors(of) - {of}
    found = []
    for node in known.graph.nodes:
        if node not in before or node not in known.relaxed or not isinstance(rule_of(node), Function):
            continue
        function = function_of(node, known)
        if not is_convex_hinge(function):
            continue
        x = known.interval(batched_arguments(node)[0])
        open_ = ~function.linear_on(x.lower, x.upper)
        if open_.any():
            found.append(Free(node, function, known.lines(node), open_))
    return found


def is_convex_hinge(function: object) -> bool:
    """Tell whether a function is one convex kink with numbers as parameters, such as ReLU, leaky ReLU or |z|."""
    return bool(
        isinstance(function, PiecewiseLinear)
        and isinstance(function, Hinge)
        and not any(isinstance(one, Tensor) for one in (function.left, function.right, function.at))
        and function.left < function.right
    )


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
            parts = (usual.lower_slope, usual.lower_intercept, usual.upper_slope, usual.upper_intercept)
            self._lines[node] = Lines(*(self._repeated(part) for part in parts))
        return self._lines[node]

    def channels_last(self, node: Node) -> Lines:
        """Return the chosen lines with the channels last."""
        lines = self.lines(node)
        last = -len(node.shape)
        parts = (lines.lower_slope, lines.lower_intercept, lines.upper_slope, lines.upper_intercept)
        return Lines(*(part.movedim(last, -1).contiguous() for part in parts))

    def _repeated(self, value: Tensor) -> Tensor:
        return value if self.batch is None else value.expand(self.batch, *value.shape[1:])


def ascend(
    known: Propagation,
    begin: Callable[[BackwardWalk], None],
    of: Node,
    rows: int,
    how: Ascent,
    enough: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return lower bounds [B, S] of the rows that ``begin`` sends to a node, the best over all iterations.

    Args:
        known: intervals of all nodes and the region.
        begin: starts the walk, as for :func:`stalwart.bounds.backward.lower_bound`.
        of: the node that ``begin`` sends to.
        rows: S.
        how: the optimiser.
        enough: tells which bounds [B, S] need not be improved; when none does, ascent stops.
    """
    free = free_nodes(known, of)
    with torch.no_grad():
        best = lower_bound(known, begin)
    if not free or how.iterations == 1:
        return best
    slopes = [one.usual.lower_slope.detach().expand(rows, *one.usual.lower_slope.shape).clone() for one in free]
    optimiser = Adam(how.rate, how.decay)
    for iteration in range(how.iterations):
        last = iteration == how.iterations - 1
        with torch.set_grad_enabled(not last):
            for slope in slopes:
                slope.requires_grad_(not last)
            view = Chosen(known, {one.node: one.lines(slope) for one, slope in zip(free, slopes, strict=True)})
            found = lower_bound(known, begin, view)
            total = found.sum()
        # A NaN neither replaces a bound nor is replaced by one.
        best = torch.where(found.detach() > best, found.detach(), best)
        if last or (enough is not None and bool(enough(best).all())):
            break
        gradients = torch.autograd.grad(total, slopes)
        slopes = [slope.detach() for slope in slopes]
        optimiser.step(slopes, list(gradients))
        for one, slope in zip(free, slopes, strict=True):
            slope.clamp_(*one.ends)
    return best


def optimise(known: Propagation, rows: Tensor, how: Ascent | None = None) -> Tensor:
    """Return lower bounds [B, R] of rows [B, R, K] of the output over the region, never below those of CROWN.

    Args:
        known: the intervals of all nodes; they stay as they are.
        rows: the specification.
        how: the optimiser.
    """

    def begin(walk: BackwardWalk) -> None:
        walk.send(known.graph.output, rows.clone())

    return ascend(known, begin, known.graph.output, rows.shape[1], Ascent() if how is None else how)


def refine(how: Ascent) -> Refine:
    """Return a refinement of intervals: CROWN, and then optimised slopes for the entries that are still open.

    Every end of every interval has slopes of its own. An entry that no longer holds a kink is left alone.
    """

    def improved(known: Propagation, node: Node, held: Interval) -> Interval:
        if node is known.graph.input:
            return held
        users = [one for one in known.relaxed if node in one.parents]
        wanted = torch.zeros_like(held.lower, dtype=torch.bool)
        for user in users:
            wanted |= ~settled(user, known) if isinstance(rule_of(user), Function) else True
        better = held.intersect(entries(known, node, wanted))
        if how.iterations == 1 or not free_nodes(known, node):
            return better
        still = torch.zeros_like(wanted)
        for user in users:
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
    if count == 0:
        return held
    order = flat.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
    widest = sum(one.usual.lower_slope[0].numel() for one in free_nodes(known, node))
    step = max(1, _SLOPE_BYTES // (2 * len(flat) * widest * held.lower.element_size()))
    lower, upper = held.lower.flatten(1).clone(), held.upper.flatten(1).clone()
    for begun in range(0, count, step):
        rows = order[:, begun : begun + step]
        size = rows.shape[1]
        found = ascend(known, at_entries(known, node, rows), node, 2 * size, how)
        lower.scatter_(1, rows, torch.maximum(lower.gather(1, rows), found[:, :size]))
        upper.scatter_(1, rows, torch.minimum(upper.gather(1, rows), -found[:, size:]))
    return Interval(lower.reshape(held.lower.shape), upper.reshape(held.upper.shape))
