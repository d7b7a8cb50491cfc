"""Operators that multiply by fixed numbers of any sign, or by an interval of weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stalwart.bounds.interval import Interval
from stalwart.bounds.patches import Patches, fast
from stalwart.bounds.rules.base import Forms, Rule, View, Walk, batched_arguments, dot, each_row, ends_of, least
from stalwart.bounds.taken import Taken
from stalwart.core.errors import InputError
from stalwart.graph import Node


class Weighted(Rule):
    """W x + c. Subclasses say how W and its transpose act; weights may be an :class:`Interval`.

    Interval arithmetic in centre and radius (Gowal et al., 2018, arXiv 1810.12715): W μ + c and |W| r. With weights in
    [W - R, W + R] the radius is |W| r + R |μ| + R r + R_c.
    """

    def weight(self, node: Node, view: View) -> Any:
        """Return W, a tensor or an interval."""
        raise NotImplementedError

    def bias(self, node: Node, view: View) -> Any:
        """Return c so that it can be added to the value, a tensor, an interval or None."""
        raise NotImplementedError

    def times(self, node: Node, view: View, weight: Tensor, x: Tensor) -> Tensor:
        """Return W x for x [N, ...]."""
        raise NotImplementedError

    def shifted(self, node: Node, view: View, weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        """Return W x + c for x [N, ...]."""
        return self.times(node, view, weight, x) + bias

    def transposed(self, node: Node, view: View, weight: Tensor, a: Tensor) -> Tensor:
        """Return a W for a [N, ...] of the value's shape."""
        raise NotImplementedError

    def interval(self, node: Node, view: View) -> Interval:
        """Centre and radius."""
        (parent,) = batched_arguments(node)
        x = view.interval(parent)
        weight, bias = self.weight(node, view), self.bias(node, view)
        middle = weight.centre if isinstance(weight, Interval) else weight
        if isinstance(bias, Tensor):
            centre = self.shifted(node, view, middle, x.centre, bias)
        else:
            centre = self.times(node, view, middle, x.centre)
        reach = self.times(node, view, middle.abs(), x.reach)
        if isinstance(weight, Interval):
            reach = reach + self.times(node, view, weight.reach, torch.maximum(x.lower.abs(), x.upper.abs()))
        if isinstance(bias, Interval):
            centre, reach = centre + bias.centre, reach + bias.reach
        return Interval.around(centre, reach)

    def backward(self, node: Node, coefficients: Tensor, walk: Walk) -> None:
        """Send a W on; subtract what the spread of the weights, if any, can cost inside the known interval of x."""
        (parent,) = batched_arguments(node)
        weight, bias = self.weight(node, walk.view), self.bias(node, walk.view)
        middle = weight.centre if isinstance(weight, Interval) else weight
        walk.send(parent, self.pulled(node, middle, coefficients, walk))
        if isinstance(weight, Interval):
            x = walk.view.interval(parent)
            spread = self.times(node, walk.view, weight.reach, torch.maximum(x.lower.abs(), x.upper.abs()))
            walk.add(-dot(coefficients.abs(), spread))
        if bias is not None and node not in walk.counted:
            walk.add(least(coefficients, bias, node.shape))

    def pulled(self, node: Node, weight: Tensor, coefficients: Tensor, walk: Walk) -> Tensor:
        """Return a W for rows [B, S, ...]."""
        return each_row(lambda a: self.transposed(node, walk.view, weight, a), coefficients)

    def forward(self, node: Node, forms: Callable[[Node], Forms], view: View) -> Forms:
        """W⁺ takes the same side, W⁻ the other (Lyu et al., 2021, section 3.2)."""
        (parent,) = batched_arguments(node)
        x, weight, bias = forms(parent), self.weight(node, view), self.bias(node, view)
        if isinstance(weight, Interval):
            raise InputError(
                f"{node.where}: linear forms take no interval of factors; use method 'ibp' or 'crown-ibp'."
            )
        above, below = weight.clamp_min(0), weight.clamp_max(0)

        def mixed(same: Tensor, other: Tensor) -> Tensor:
            return self.times(node, view, above, same) + self.times(node, view, below, other)

        def slopes(same: Tensor, other: Tensor) -> Tensor:
            return mixed(same.flatten(0, 1), other.flatten(0, 1)).unflatten(0, same.shape[:2])

        offset = ends_of(0.0 if bias is None else bias)
        return Forms(
            slopes(x.lower_slope, x.upper_slope),
            mixed(x.lower, x.upper) + offset.lower,
            slopes(x.upper_slope, x.lower_slope),
            mixed(x.upper, x.lower) + offset.upper,
        )


class Linear(Weighted):
    """x Wᵀ + c over the last axis."""

    def weight(self, node: Node, view: View) -> Any:
        """Return W [K, D]."""
        return view.fixed(node.args[1])

    def bias(self, node: Node, view: View) -> Any:
        """Return c [K]."""
        return view.fixed(node.args[2]) if len(node.args) > 2 else None

    def start(self, node: Node, rows: Tensor, signs: Tensor, walk: Walk) -> bool:
        """Begin with rows of W."""
        (parent,) = batched_arguments(node)
        weight, bias = self.weight(node, walk.view), self.bias(node, walk.view)
        if len(node.shape) != 1 or isinstance(weight, Interval) or isinstance(bias, Interval):
            return False
        walk.send(parent, Taken(weight, rows, signs))
        if bias is not None:
            walk.add(bias[rows] * signs)
        return True

    def times(self, node: Node, view: View, weight: Tensor, x: Tensor) -> Tensor:
        """Return x Wᵀ."""
        return F.linear(x, weight)

    def shifted(self, node: Node, view: View, weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        """Return x Wᵀ + c in one operator."""
        return F.linear(x, weight, bias)

    def transposed(self, node: Node, view: View, weight: Tensor, a: Tensor) -> Tensor:
        """Return a W."""
        return torch.matmul(a, weight)

    def pulled(self, node: Node, weight: Tensor, coefficients: Tensor, walk: Walk) -> Tensor:
        """Return a W, in memory that walks may share."""
        if not fast(coefficients, weight):
            return super().pulled(node, weight, coefficients, walk)
        out = walk.room(node, weight, *coefficients.shape[:-1], weight.shape[1])
        torch.mm(coefficients.flatten(0, -2), weight, out=out.flatten(0, -2))
        return out


class Scale(Weighted):
    """x times a fixed factor, entry by entry, plus a fixed offset: products, quotients, negation, differences, batch norm."""

    entrywise = True

    def times(self, node: Node, view: View, weight: Tensor, x: Tensor) -> Tensor:
        """Return the product."""
        return x * weight

    def transposed(self, node: Node, view: View, weight: Tensor, a: Tensor) -> Tensor:
        """Return the product, summed over the axes along which x was repeated."""
        (parent,) = batched_arguments(node)
        return _sum_to(a * weight, parent.shape)


def _sum_to(a: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum a [N, ...] over axes that broadcasting added to or stretched from ``shape``."""
    lead = a.dim() - 1 - len(shape)
    if lead:
        a = a.sum(list(range(1, 1 + lead)))
    axes = [k + 1 for k, side in enumerate(shape) if side == 1 and a.shape[k + 1] != 1]
    return a.sum(axes, keepdim=True) if axes else a


def per_channel(value: Any, axes: int) -> Any:
    """Return a channel's numbers or intervals [C] as [C, 1, ...]."""
    if value is None:
        return None
    if isinstance(value, Interval):
        return Interval(per_channel(value.lower, axes), per_channel(value.upper, axes))
    return value.reshape(-1, *[1] * axes)


class Product(Scale):
    """x c or c x."""

    def weight(self, node: Node, view: View) -> Any:
        """Return c."""
        (parent,) = batched_arguments(node)
        other = node.args[1] if node.args[0] is parent else node.args[0]
        return _tensor(view.fixed(other), view, parent)

    def bias(self, node: Node, view: View) -> None:
        """There is none."""


class Quotient(Product):
    """x / c."""

    def weight(self, node: Node, view: View) -> Any:
        """Return 1 / c."""
        weight = super().weight(node, view)
        if isinstance(weight, Interval):
            if bool(((weight.lower <= 0) & (weight.upper >= 0)).any()):
                raise InputError(f"{node.where}: a divisor ranges over 0; let its weights vary less.")
            return Interval(weight.upper.reciprocal(), weight.lower.reciprocal())
        return weight.reciprocal()


class Negation(Scale):
    """-x."""

    def weight(self, node: Node, view: View) -> Any:
        """Return -1."""
        return _tensor(-1.0, view, batched_arguments(node)[0])

    def bias(self, node: Node, view: View) -> None:
        """There is none."""


class BatchNorm(Scale):
    """γ (x - mean) / sqrt(var + eps) + β per channel, in its evaluation form or with the statistics of a given batch."""

    def weight(self, node: Node, view: View) -> Any:
        """Return γ / sqrt(var + eps) as [C, 1, ...]."""
        _, gamma, _, _, variance, *_ = node.args
        axes = len(node.shape) - 1
        scale = (view.fixed(variance) + node.args[7]).rsqrt()
        gamma = view.fixed(gamma)
        if gamma is None:
            return per_channel(scale, axes)
        if isinstance(gamma, Interval):
            return per_channel(Interval(gamma.lower * scale, gamma.upper * scale), axes)
        return per_channel(gamma * scale, axes)

    def patched(self, node: Node, patches: Patches, walk: Walk) -> bool:
        """Multiply each channel."""
        weight, bias = self.weight(node, walk.view), self.bias(node, walk.view)
        if isinstance(weight, Interval) or isinstance(bias, Interval):
            return False
        (parent,) = batched_arguments(node)
        if node not in walk.counted:
            walk.add(patches.coefficients.sum((2, 3)) @ bias.flatten())
        walk.send(parent, Patches(patches.coefficients * weight.flatten(), patches.places, patches.image))
        return True

    def bias(self, node: Node, view: View) -> Any:
        """Return β - weight * mean."""
        axes = len(node.shape) - 1
        weight, beta = self.weight(node, view), view.fixed(node.args[2])
        mean = per_channel(view.fixed(node.args[3]), axes)
        shift: Any
        if isinstance(weight, Interval):
            shift = Interval.around(-weight.centre * mean, weight.reach * mean.abs())
        else:
            shift = -weight * mean
        if beta is None:
            return shift
        beta = per_channel(beta, axes)
        if not isinstance(shift, Interval) and not isinstance(beta, Interval):
            return shift + beta
        a, b = ends_of(shift), ends_of(beta)
        return Interval(a.lower + b.lower, a.upper + b.upper)


def _tensor(value: Any, view: View, parent: Node) -> Any:
    if isinstance(value, Tensor | Interval):
        return value
    like = view.interval(parent).lower
    return torch.tensor(float(value), dtype=like.dtype, device=like.device)


class MatMul(Weighted):
    """A matrix product with one fixed operand."""

    def weight(self, node: Node, view: View) -> Any:
        """Return the fixed operand."""
        return view.fixed(next(one for one in node.args[:2] if not one.batched))

    def bias(self, node: Node, view: View) -> None:
        """There is none."""

    def times(self, node: Node, view: View, weight: Tensor, x: Tensor) -> Tensor:
        """Return the product in the operands' order."""
        return torch.matmul(x, weight) if node.args[0].batched else torch.matmul(weight, x)

    def transposed(self, node: Node, view: View, weight: Tensor, a: Tensor) -> Tensor:
        """Return the product with the transpose."""
        (parent,) = batched_arguments(node)
        zeros = a.new_zeros(a.shape[0], *parent.shape)
        transpose = torch.func.vjp(lambda x: self.times(node, view, weight, x), zeros)[1]
        found: Tensor = transpose(a)[0]
        return found
