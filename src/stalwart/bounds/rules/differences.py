"""x - y, and x + y with a negative factor, where either may be fixed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stalwart.bounds.interval import Interval
from stalwart.bounds.rules.base import Forms, Rule, View, Walk, dot
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
                value = torch.as_tensor(walk.view.fixed(one), dtype=coefficients.dtype, device=coefficients.device)
                walk.add(sign * dot(coefficients, value.expand(1, *node.shape)))

    def forward(self, node: Node, forms: Callable[[Node], Forms], view: View) -> Forms:
        """Subtract opposite sides."""
        x, y, alpha = self._operands(node)
        a, b = _sides(x, forms, view), _sides(y, forms, view)
        if alpha < 0:
            b = Forms(b.upper_slope, b.upper, b.lower_slope, b.lower)
        return Forms(
            a.lower_slope - alpha * b.upper_slope,
            a.lower - alpha * b.upper,
            a.upper_slope - alpha * b.lower_slope,
            a.upper - alpha * b.lower,
        )


def _ends(value: Any, view: View) -> Interval:
    if isinstance(value, Node) and value.batched:
        return view.interval(value)
    fixed = view.fixed(value)
    if isinstance(fixed, Interval):
        return fixed
    value = torch.as_tensor(fixed)
    return Interval(value, value)


def _sides(value: Any, forms: Callable[[Node], Forms], view: View) -> Forms:
    if isinstance(value, Node) and value.batched:
        return forms(value)
    fixed = torch.as_tensor(view.fixed(value))
    return Forms(fixed.new_zeros(()), fixed, fixed.new_zeros(()), fixed)
