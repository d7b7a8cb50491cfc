"""Intervals, lines and linear forms of every node of a graph over one region, made when asked for."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stalwart.bounds import rounding
from stalwart.bounds.interval import Interval
from stalwart.bounds.lines import Lines
from stalwart.bounds.patches import fast
from stalwart.bounds.region import Region
from stalwart.bounds.rules.base import Forms, View, batched_arguments
from stalwart.bounds.rules.elementwise import Function, lines_of, settled
from stalwart.bounds.rules.spread import check_uses
from stalwart.bounds.rules.table import rule_of
from stalwart.bounds.rules.weighted import Weighted
from stalwart.graph import Graph, Node

Refine = Callable[["Propagation", Node, Interval], Interval]


class Propagation(View):
    """What is known of each node's value over a region.

    Intervals come from the rules (interval bound propagation). Where an operand of a nonlinear operator is reached, ``refine``
    may return another interval, and everything behind it uses the intersection; "adaptive" lines also look at what it returned.

    Attributes:
        graph: the operators.
        region: the inputs.
        strategy: how lines of piecewise-linear functions are chosen.
        rigorous: whether intervals, lines and walks make room for rounding.
    """

    def __init__(
        self,
        graph: Graph,
        fixed: dict[Node, Any],
        region: Region,
        strategy: str = "adaptive",
        refine: Refine | None = None,
        rigorous: bool = False,
    ) -> None:
        self.graph, self.region, self.strategy, self.rigorous = graph, region, strategy, rigorous
        self._fixed, self._refine = fixed, refine
        self._intervals: dict[Node, Interval] = {graph.input: region.box}
        self._lines: dict[Node, Lines] = {}
        self._last: dict[Node, Lines] = {}
        self._passing: dict[tuple[Node, bool], tuple[Lines, bool]] = {}
        self._forms: dict[Node, Forms] = {}
        check_uses(graph, fixed)
        relaxed = [node for node in graph.nodes if node.batched and node.op != "input" and rule_of(node).relaxed]
        self.relaxed = frozenset(relaxed)
        self.operands = frozenset(parent for node in relaxed for parent in batched_arguments(node))
        self._walked: dict[Node, Interval] = {}
        self._inner = True
        for node in graph.nodes:
            if node.batched:
                self.interval(node)
        self._inner = False
        if self._walked:
            # From here on lines may follow the best of all intervals.
            self._lines, self._last, self._passing = {}, {}, {}

    def fixed(self, value: Any) -> Any:
        """Return what does not depend on the input: the value of a node, or a literal itself."""
        return self._fixed[value] if isinstance(value, Node) else value

    def interval(self, node: Node) -> Interval:
        """Return the best known interval of a node."""
        if node not in self._intervals:
            found = rule_of(node).interval(node, self)
            if self.rigorous:
                found = rounding.widened(node, found, self)
            if self._refine is not None and node in self.operands:
                self._intervals[node] = found
                self._walked[node] = self._refine(self, node, found)
                found = found.intersect(self._walked[node])
            self._intervals[node] = found
        return self._intervals[node]

    def lines(self, node: Node) -> Lines:
        """Return the lines of an elementwise node."""
        if node not in self._lines:
            (parent,) = batched_arguments(node)
            self._lines[node] = lines_of(node, self, self.rigorous, self._walked.get(parent), self._inner)
        return self._lines[node]

    def channels_last(self, node: Node) -> Lines:
        """Return the same lines of an image's node as [B, H, W, C]."""
        if node not in self._last:
            lines = self.lines(node)
            self._last[node] = Lines(*(part.movedim(1, -1).contiguous() for part in lines.parts))
        return self._last[node]

    def passing(self, node: Node, last: bool = False) -> tuple[Lines, bool]:
        """Return lines for compiled loops: of the operand without its bias, where no one else needs that operand."""
        if (node, last) not in self._passing:
            lines, bias = self.channels_last(node) if last else self.lines(node), self._bias_before(node)
            if bias is not None:
                offset = bias.expand(node.shape).movedim(0, -1) if last else bias
                low = torch.addcmul(lines.lower_intercept, lines.lower_slope, offset)
                high = torch.addcmul(lines.upper_intercept, lines.upper_slope, offset)
                lines = Lines(lines.lower_slope, low, lines.upper_slope, high)
            self._passing[node, last] = lines, bias is not None
        return self._passing[node, last]

    def _bias_before(self, node: Node) -> Tensor | None:
        (operand,) = batched_arguments(node)
        users = [one for one in self.graph.nodes if operand in one.parents]
        if self.rigorous or operand is self.graph.output or users != [node]:
            return None
        rule = rule_of(operand) if operand is not self.graph.input else None
        bias = rule.bias(operand, self) if isinstance(rule, Weighted) else None
        return bias if isinstance(bias, Tensor) and fast(bias) else None

    def forms(self, node: Node) -> Forms:
        """Return linear functions of the input that enclose a node's value (LBP; Lyu et al., 2021, section 3.2)."""
        if node not in self._forms:
            if node is self.graph.input:
                self._forms[node] = _identity(self.region.box.lower)
            else:
                self._forms[node] = rule_of(node).forward(node, self.forms, self)
        return self._forms[node]

    def wanted(self, node: Node) -> Tensor:
        """Return which entries [B, ...] of a nonlinear operator's operand a walk may narrow, and so make lines tighter."""
        found = torch.zeros_like(self.interval(node).lower, dtype=torch.bool)
        if not self.rigorous and self._is_exact(node):
            return found
        for user in self.relaxed:
            if node in user.parents:
                found |= ~settled(user, self) if isinstance(rule_of(user), Function) else True
        return found

    def _is_exact(self, node: Node) -> bool:
        """Tell whether a node's interval is what it takes over a box: at most one operator on the way combines entries."""
        if self.region.within is not None or any(isinstance(value, Interval) for value in self._fixed.values()):
            return False
        combined = 0
        while node is not self.graph.input:
            parents = [parent for parent in node.parents if parent.batched]
            if node in self.relaxed or len(parents) != 1 or combined > 1:
                return False
            combined += not (rule_of(node).entrywise and math.prod(node.shape) == math.prod(parents[0].shape))
            node = parents[0]
        return combined <= 1

    def concretise(self, forms: Forms) -> Interval:
        """Return the interval that linear forms give over the region."""

        def rows(slope: Tensor) -> Tensor:
            return slope.flatten(2).transpose(1, 2).unflatten(2, self.region.box.lower.shape[1:])

        low = self.region.minimum(rows(forms.lower_slope)).reshape(forms.lower.shape)
        high = self.region.minimum(-rows(forms.upper_slope)).reshape(forms.upper.shape)
        return Interval(forms.lower + low, forms.upper - high)

    def to(self, dtype: torch.dtype) -> "Propagation":
        """Return the same knowledge of a box, with all numbers rounded to another type."""
        assert self.region.within is None

        def moved(value: Any) -> Any:
            if isinstance(value, Interval):
                return Interval(moved(value.lower), moved(value.upper))
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        other = copy.copy(self)
        other.region = Region(moved(self.region.box))
        other._fixed = {node: moved(value) for node, value in self._fixed.items()}
        other._intervals = {node: moved(value) for node, value in self._intervals.items()}
        other._walked = {node: moved(value) for node, value in self._walked.items()}
        other._lines, other._last, other._passing, other._forms = {}, {}, {}, {}
        return other

    @property
    def activations(self) -> list[tuple[str, Interval]]:
        """Return for each elementwise nonlinearity its module path and the interval of its operand, in order."""
        nodes = [node for node in self.graph.nodes if node in self.relaxed and isinstance(rule_of(node), Function)]
        return [(node.path or node.name, self.interval(batched_arguments(node)[0])) for node in nodes]


def _identity(x: Tensor) -> Forms:
    count = x[0].numel()
    eye = (
        torch.eye(count, dtype=x.dtype, device=x.device)
        .reshape(1, count, *x.shape[1:])
        .expand(len(x), -1, *x.shape[1:])
    )
    zero = torch.zeros_like(x)
    return Forms(eye, zero, eye, zero)
