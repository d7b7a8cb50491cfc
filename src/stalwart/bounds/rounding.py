"""What rounding can have cost a bound, so that it can be subtracted (``rigor="rigorous"``).

Any order of summing n products errs by at most γ_n Σ|terms|, γ_n = n u / (1 - n u) with the unit roundoff u (Higham, Accuracy
and Stability of Numerical Algorithms, 2002, section 3.1). A backward walk's coefficients A are taken as exact; what is lost by
computing them as floats is charged at each node as γ_n <|A|, G>, where G bounds the absolute terms of the node's value over
the region: |W| M + |c| for a linear layer whose operand is at most M in size, |s| M + |t| for a line. The same terms widen
intervals.

It holds for networks of linear operators and piecewise-linear functions, in real arithmetic: it bounds the network's exact
value, not what a float evaluation of it returns.
"""

import math

import torch
from torch import Tensor

from stalwart.bounds.interval import Interval
from stalwart.bounds.rules.base import View, apply, batched_arguments
from stalwart.bounds.rules.differences import Difference
from stalwart.bounds.rules.elementwise import Function, function_of
from stalwart.bounds.rules.maxima import Largest
from stalwart.bounds.rules.moves import Add, Move, Reshape, Same
from stalwart.bounds.rules.table import rule_of
from stalwart.bounds.rules.weighted import BatchNorm, Weighted, per_channel
from stalwart.core.errors import UsageError
from stalwart.graph import Graph, Node

_SLACK = 160
"""Roundings beside those of sums: of centres and radii, of scale factors, and of adding up the parts of a bound."""


def check(graph: Graph) -> None:
    """Refuse operators whose rounding is not known.

    Raises:
        UsageError: the message names the operator and its module.
    """
    for node in graph.nodes:
        if not node.batched or node.op == "input":
            continue
        rule = rule_of(node)
        if isinstance(rule, Function):
            continue
        if not isinstance(rule, Weighted | Move | Difference | Largest):
            raise UsageError(
                f"rigor='rigorous' covers linear operators and piecewise-linear functions, not {node.where}; "
                "use rigor='float64'."
            )


def magnitude(interval: Interval) -> Tensor:
    """Return the largest absolute value."""
    return torch.maximum(interval.lower.abs(), interval.upper.abs())


def terms(node: Node, view: View) -> Tensor:
    """Return G, a bound of the absolute terms that a node's value is summed from, [B, ...].

    Raises:
        UsageError: a function that is not piecewise linear.
    """
    rule = rule_of(node)
    sizes = {parent: magnitude(view.interval(parent)) for parent in batched_arguments(node)}
    if isinstance(rule, BatchNorm):
        ((_, size),) = sizes.items()
        axes = len(node.shape) - 1
        weight = rule.weight(node, view).abs()
        shift = per_channel(view.fixed(node.args[3]), axes).abs()
        beta = view.fixed(node.args[2])
        return weight * (size + shift) + (0 if beta is None else per_channel(beta, axes).abs())
    if isinstance(rule, Weighted):
        ((_, size),) = sizes.items()
        bias = rule.bias(node, view)
        found = rule.times(node, view, rule.weight(node, view).abs(), size)
        return found if bias is None else found + bias.abs()
    if isinstance(rule, Function):
        if not function_of(node, view).piecewise_linear:
            raise UsageError(
                f"rigor='rigorous' covers piecewise-linear functions, not {node.where}; use rigor='float64'."
            )
        ((_, size),) = sizes.items()
        lines = view.lines(node)
        slope = torch.maximum(lines.lower_slope.abs(), lines.upper_slope.abs())
        return slope * size + torch.maximum(lines.lower_intercept.abs(), lines.upper_intercept.abs())
    if isinstance(rule, Difference | Add):
        some = next(iter(sizes.values()))
        total = some.new_zeros(len(some), *node.shape)
        for one in node.args[:2]:
            total = total + (
                sizes[one] if isinstance(one, Node) and one.batched else torch.as_tensor(view.fixed(one)).abs()
            )
        return total * max(1.0, abs(float(node.kwargs.get("alpha", 1))))
    if isinstance(rule, Reshape | Same | Largest):
        return magnitude(view.interval(node))
    return torch.maximum(apply(node, sizes, view).abs(), magnitude(view.interval(node)))


def roundings(node: Node, view: View) -> int:
    """Return n, how many roundings any term of the node's value or of its coefficients may pass."""
    if node.op == "input" or isinstance(rule_of(node), Reshape | Same):
        return math.prod(node.shape) + _SLACK
    largest = max(math.prod(parent.shape) for parent in batched_arguments(node))
    return math.prod(node.shape) + largest + _SLACK


def gamma(n: int, dtype: torch.dtype) -> float:
    """Return γ_n, a little enlarged, since it multiplies sums that are rounded themselves."""
    unit = torch.finfo(dtype).eps / 2
    if n * unit > 0.01:
        raise UsageError(f"sums of {n} terms are too long for rigorous bounds in {dtype}; use float64.")
    return n * unit / (1 - n * unit) * (1 + 2**-6)


def widened(node: Node, interval: Interval, view: View) -> Interval:
    """Return the interval with room for the roundings of its own computation."""
    if isinstance(rule_of(node), Reshape | Same | Largest):
        return interval
    if isinstance(rule_of(node), Function):
        (parent,) = batched_arguments(node)
        x = view.interval(parent)
        return Interval(*function_of(node, view).outward_interval(x.lower, x.upper))
    room = 2 * gamma(roundings(node, view), interval.lower.dtype) * _forward_terms(node, view)
    room = room + torch.finfo(interval.lower.dtype).tiny
    return Interval(interval.lower - room, interval.upper + room)


def _forward_terms(node: Node, view: View) -> Tensor:
    rule = rule_of(node)
    sizes = {parent: magnitude(view.interval(parent)) for parent in batched_arguments(node)}
    if isinstance(rule, Weighted | Difference | Add):
        return terms(node, view)
    return apply(node, sizes, view).abs()


def outward(box: Interval, low: float, high: float) -> Interval:
    """Return a box of inputs with ends rounded away from its middle, still inside [low, high]."""
    lower = torch.nextafter(box.lower, torch.full_like(box.lower, -torch.inf)).clamp_min(low)
    upper = torch.nextafter(box.upper, torch.full_like(box.upper, torch.inf)).clamp_max(high)
    return Interval(lower, upper)
