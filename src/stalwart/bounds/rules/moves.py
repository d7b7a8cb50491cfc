"""Operators that are increasing and linear in their operands: reshapes, slices, sums, means, average pooling, addition."""

from collections.abc import Callable

import torch
from torch import Tensor

from stalwart.bounds.interval import Interval
from stalwart.bounds.patches import Patches
from stalwart.bounds.rules.base import Forms, Rule, View, Walk, apply, batched_arguments, least
from stalwart.graph import Node


class Move(Rule):
    """f(x_1, ..., x_k) = Σ M_i x_i + c with entries of all M_i at least 0: each end of the result comes from the same ends."""

    options = None

    def interval(self, node: Node, view: View) -> Interval:
        """Apply the operator to both ends."""
        parents = batched_arguments(node)
        ends = {parent: view.interval(parent) for parent in parents}
        return Interval(
            apply(node, {parent: end.lower for parent, end in ends.items()}, view),
            apply(node, {parent: end.upper for parent, end in ends.items()}, view, "upper"),
        )

    def backward(self, node: Node, coefficients: Tensor, walk: Walk) -> None:
        """Send the coefficients through the transpose of each M_i."""
        parents = batched_arguments(node)
        batch, rows = coefficients.shape[:2]
        zeros = [coefficients.new_zeros(batch * rows, *parent.shape) for parent in parents]

        def linear(*values: Tensor) -> Tensor:
            return apply(node, dict(zip(parents, values, strict=True)), walk.view)

        flat = coefficients.flatten(0, 1)
        offset, transpose = torch.func.vjp(linear, *zeros)[:2]
        for parent, found in zip(parents, transpose(flat), strict=True):
            walk.send(parent, found.unflatten(0, (batch, rows)))
        constant = flat * offset
        if any(isinstance(walk.view.fixed(parent), Interval) for parent in node.parents if not parent.batched):
            most = apply(node, dict(zip(parents, zeros, strict=True)), walk.view, "upper")
            constant = torch.minimum(constant, flat * most)
        walk.add(constant.flatten(1).sum(1).unflatten(0, (batch, rows)))

    def forward(self, node: Node, forms: Callable[[Node], Forms], view: View) -> Forms:
        """Apply the operator to intercepts and its linear part to slopes."""
        parents = batched_arguments(node)
        given = {parent: forms(parent) for parent in parents}
        example = next(iter(given.values())).lower_slope
        batch, inputs = example.shape[:2]
        zero = apply(node, {parent: example.new_zeros(1, *parent.shape) for parent in parents}, view)

        def slopes(side: str) -> Tensor:
            flat = {parent: getattr(form, side).flatten(0, 1) for parent, form in given.items()}
            return (apply(node, flat, view) - zero).unflatten(0, (batch, inputs))

        return Forms(
            slopes("lower_slope"),
            apply(node, {parent: form.lower for parent, form in given.items()}, view),
            slopes("upper_slope"),
            apply(node, {parent: form.upper for parent, form in given.items()}, view, "upper"),
        )


class Rearranged(Move):
    """The entries of one operand, as they are."""

    entrywise = True

    def interval(self, node: Node, view: View) -> Interval:
        """Apply the operator to both ends, or to centre and reach where the interval was made of them."""
        (parent,) = batched_arguments(node)
        x = view.interval(parent)
        if not x.is_around:
            return super().interval(node, view)
        return Interval.around(*(apply(node, {parent: part}, view) for part in (x.centre, x.reach)))


class Reshape(Rearranged):
    """A new shape for the same values."""

    def backward(self, node: Node, coefficients: Tensor, walk: Walk) -> None:
        """Give the coefficients the operand's shape."""
        (parent,) = batched_arguments(node)
        walk.send(parent, coefficients.reshape(*coefficients.shape[:2], *parent.shape))


class Same(Rearranged):
    """An operator that does nothing: dropout in evaluation mode, copies, casts."""

    def backward(self, node: Node, coefficients: Tensor, walk: Walk) -> None:
        """Hand the coefficients on."""
        (parent,) = batched_arguments(node)
        walk.send(parent, coefficients)

    def patched(self, node: Node, patches: Patches, walk: Walk) -> bool:
        """Hand the patches on."""
        (parent,) = batched_arguments(node)
        walk.send(parent, patches)
        return True


class Add(Move):
    """x + alpha y with alpha > 0; either may be fixed."""

    entrywise = True

    def backward(self, node: Node, coefficients: Tensor, walk: Walk) -> None:
        """Hand the coefficients to both operands of the full shape; broadcasting ones take the general way."""
        operands = node.args[:2]
        plain = all(not isinstance(one, Node) or not one.batched or one.shape == node.shape for one in operands)
        if not plain or node.kwargs.get("alpha", 1) != 1:
            super().backward(node, coefficients, walk)
            return
        for number, one in enumerate(operands):
            if isinstance(one, Node) and one.batched:
                walk.send(one, coefficients.clone() if number else coefficients)
            else:
                walk.add(least(coefficients, walk.view.fixed(one), node.shape))

    def patched(self, node: Node, patches: Patches, walk: Walk) -> bool:
        """Hand the patches to both operands, where neither is fixed."""
        first, second = node.args[:2]
        plain = all(isinstance(one, Node) and one.batched and one.shape == node.shape for one in (first, second))
        if not plain or node.kwargs.get("alpha", 1) != 1:
            return False
        walk.send(first, Patches(patches.coefficients.clone(), patches.places, patches.image))
        walk.send(second, patches)
        return True
