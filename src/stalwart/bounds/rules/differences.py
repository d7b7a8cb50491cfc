"""x - y, and x + y with a negative factor, where either may be fixed."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from stalwart.bounds.interval import Interval
from stalwart.bounds.rules.base import Forms, Rule, View, Walk, ends_of, least
from stalwart.bounds.rules.weighted import _sum_to
from stalwart.graph import Node


class Difference(Rule):
    """x - alpha y with any alpha."""

    options = frozenset({"alpha"})

    def _operands(self, node: Node) -> tuple[Any, Any, float]:
        x, y = node.args[:2]
        if node.op == "rsub":
            x, y = y, x
        alpha = float(node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1))
        return x, y, -alpha if node.op == "add" else alpha

    def interval(self, node: Node, view: View) -> Interval:
        """Subtract opposite ends."""
        x, y, alpha = self._operands(node)
        a, b = _ends(x, view), _ends(y, view)
        most, least = (b.upper, b.lower) if alpha >= 0 else (b.lower, b.upper)
        return Interval(a.lower - alpha * most, a.upper - alpha * least)

    def backward(self, node: Node, coefficients: Tensor, walk: Walk) -> None:
        """Hand the coefficients on, negated to y."""
        x, y, alpha = self._operands(node)
        for one, sign in ((x, 1.0), (y, -alpha)):
            if isinstance(one, Node) and one.batched:
                flat = _sum_to(coefficients.flatten(0, 1), one.shape)
                walk.send(one, sign * flat.unflatten(0, coefficients.shape[:2]))
            else:
                walk.add(least(sign * coefficients, walk.view.fixed(one), node.shape))

    def forward(self, node: Node, forms: Callable[[Node], Forms], view: View) -> Forms:
        """Subtract opposite sides."""
        x, y, alpha = self._operands(node)
        a, b = _sides(x, forms, view), _sides(y, forms, view)
        if alpha < 0:
            b = Forms(b.upper_slope, b.upper, b.lower_slope, b.lower)

        def whole(slope: Tensor) -> Tensor:
            # A fixed operand may be larger than the other one, and has no slopes.
            return slope.expand(*slope.shape[:2], *node.shape)

        return Forms(
            whole(a.lower_slope - alpha * b.upper_slope),
            a.lower - alpha * b.upper,
            whole(a.upper_slope - alpha * b.lower_slope),
            a.upper - alpha * b.lower,
        )


def _ends(value: Any, view: View) -> Interval:
    if isinstance(value, Node) and value.batched:
        return view.interval(value)
    return ends_of(view.fixed(value))


def _sides(value: Any, forms: Callable[[Node], Forms], view: View) -> Forms:
    if isinstance(value, Node) and value.batched:
        return forms(value)
    fixed = ends_of(view.fixed(value))
    nothing = fixed.lower.new_zeros(())
    return Forms(nothing, fixed.lower, nothing, fixed.upper)
