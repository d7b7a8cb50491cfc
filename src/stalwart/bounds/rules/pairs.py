"""Products, maxima and minima of two operands that both depend on the input: two planes enclose them."""

from collections.abc import Callable

import torch
from torch import Tensor

from stalwart.bounds import planes
from stalwart.bounds.interval import Interval
from stalwart.bounds.rules.base import Forms, Rule, View, Walk, dot
from stalwart.bounds.rules.weighted import _sum_to
from stalwart.graph import Node

_FUNCTIONS = {"mul": "product", "maximum": "maximum", "minimum": "minimum"}


class Pair(Rule):
    """z = f(x, y), entry by entry, with broadcasting."""

    relaxed = True

    def _ends(self, node: Node, view: View) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, y = (view.interval(one) for one in node.args[:2])
        return tuple(torch.broadcast_tensors(x.lower, x.upper, y.lower, y.upper))

    def interval(self, node: Node, view: View) -> Interval:
        """Return the function's own interval."""
        return Interval(*getattr(planes, f"{_FUNCTIONS[node.op]}_interval")(*self._ends(node, view)))

    def _planes(self, node: Node, view: View) -> planes.Planes:
        found: planes.Planes = getattr(planes, f"{_FUNCTIONS[node.op]}_planes")(*self._ends(node, view))
        return found

    def backward(self, node: Node, coefficients: Tensor, walk: Walk) -> None:
        """A⁺ takes the lower plane, A⁻ the upper."""
        found = self._planes(node, walk.view)
        above, below = coefficients.clamp_min(0), coefficients.clamp_max(0)
        for one, low, high in (
            (node.args[0], found.lower_x, found.upper_x),
            (node.args[1], found.lower_y, found.upper_y),
        ):
            sent = above * low.unsqueeze(1) + below * high.unsqueeze(1)
            walk.send(one, _sum_to(sent.flatten(0, 1), one.shape).unflatten(0, sent.shape[:2]))
        walk.add(dot(above, found.lower_intercept) + dot(below, found.upper_intercept))

    def forward(self, node: Node, forms: Callable[[Node], Forms], view: View) -> Forms:
        """Compose the planes with the sides that the signs of their slopes ask for."""
        found = self._planes(node, view)
        x, y = forms(node.args[0]), forms(node.args[1])

        def composed(slope: Tensor, form: Forms, same: str, other: str) -> tuple[Tensor, Tensor]:
            up, down = slope.clamp_min(0), slope.clamp_max(0)
            return (
                getattr(form, f"{same}_slope") * up.unsqueeze(1) + getattr(form, f"{other}_slope") * down.unsqueeze(1),
                getattr(form, same) * up + getattr(form, other) * down,
            )

        low_x, low_y = composed(found.lower_x, x, "lower", "upper"), composed(found.lower_y, y, "lower", "upper")
        high_x, high_y = composed(found.upper_x, x, "upper", "lower"), composed(found.upper_y, y, "upper", "lower")
        return Forms(
            low_x[0] + low_y[0],
            low_x[1] + low_y[1] + found.lower_intercept,
            high_x[0] + high_y[0],
            high_x[1] + high_y[1] + found.upper_intercept,
        )
