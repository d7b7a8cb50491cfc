"""Operators that multiply by fixed numbers of any sign, or by an interval of weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stalwart.bounds.interval import Interval
from stalwart.bounds.patches import Patches, fast, fold
from stalwart.bounds.rules.base import Forms, Rule, View, Walk, batched_arguments, dot, each_row
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

    def transposed(self, node: Node, view: View, weight: Tensor, a: Tensor) -> Tensor:
        """Return a W for a [N, ...] of the value's shape."""
        raise NotImplementedError

    def interval(self, node: Node, view: View) -> Interval:
        """Centre and radius."""
        (parent,) = batched_arguments(node)
        x = view.interval(parent)
        weight, bias = self.weight(node, view), self.bias(node, view)
        middle = weight.centre if isinstance(weight, Interval) else weight
        centre = self.times(node, view, middle, x.centre)
        reach = self.times(node, view, middle.abs(), x.reach)
        if isinstance(weight, Interval):
            reach = reach + self.times(node, view, weight.reach, torch.maximum(x.lower.abs(), x.upper.abs()))
        if isinstance(bias, Interval):
            centre, reach = centre + bias.centre, reach + bias.reach
        elif bias is not None:
            centre = centre + bias
        return Interval.around(centre, reach)

    def backward(self, node: Node, coefficients: Tensor, walk: Walk) -> None:
        """Send a W on; subtract what the spread of the weights, if any, can cost inside the known interval of x."""
        (parent,) = batched_arguments(node)
        weight, bias = self.weight(node, walk.view), self.bias(node, walk.view)
        middle = weight.centre if isinstance(weight, Interval) else weight
        walk.send(parent, each_row(lambda a: self.transposed(node, walk.view, middle, a), coefficients))
        if isinstance(weight, Interval):
            x = walk.view.interval(parent)
            spread = self.times(node, walk.view, weight.reach, torch.maximum(x.lower.abs(), x.upper.abs()))
            walk.add(-dot(coefficients.abs(), spread))
        if isinstance(bias, Interval):
            walk.add(dot(coefficients, bias.centre.expand(1, *node.shape)))
            walk.add(-dot(coefficients.abs(), bias.reach.expand(1, *node.shape)))
        elif bias is not None:
            walk.add(dot(coefficients, bias.expand(1, *node.shape)))

    def forward(self, node: Node, forms: Callable[[Node], Forms], view: View) -> Forms:
        """W⁺ takes the same side, W⁻ the other (Lyu et al., 2021, section 3.2)."""
        (parent,) = batched_arguments(node)
        x, weight, bias = forms(parent), self.weight(node, view), self.bias(node, view)
        if isinstance(weight, Interval) or isinstance(bias, Interval):
            raise InputError("forward linear bounds take no intervals of weights; use method 'ibp' or 'crown-ibp'.")
        above, below = weight.clamp_min(0), weight.clamp_max(0)

        def mixed(same: Tensor, other: Tensor) -> Tensor:
            return self.times(node, view, above, same) + self.times(node, view, below, other)

        def slopes(same: Tensor, other: Tensor) -> Tensor:
            return mixed(same.flatten(0, 1), other.flatten(0, 1)).unflatten(0, same.shape[:2])

        offset = 0.0 if bias is None else bias
        return Forms(
            slopes(x.lower_slope, x.upper_slope),
            mixed(x.lower, x.upper) + offset,
            slopes(x.upper_slope, x.lower_slope),
            mixed(x.upper, x.lower) + offset,
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
        """Take rows of W."""
        (parent,) = batched_arguments(node)
        weight, bias = self.weight(node, walk.view), self.bias(node, walk.view)
        if len(node.shape) != 1 or isinstance(weight, Interval) or isinstance(bias, Interval):
            return False
        taken = weight.index_select(0, rows.flatten()).unflatten(0, rows.shape)
        walk.send(parent, taken.mul_(signs[:, None]))
        if bias is not None:
            walk.add(bias[rows] * signs)
        return True

    def times(self, node: Node, view: View, weight: Tensor, x: Tensor) -> Tensor:
        """Return x Wᵀ."""
        return F.linear(x, weight)

    def transposed(self, node: Node, view: View, weight: Tensor, a: Tensor) -> Tensor:
        """Return a W."""
        return torch.matmul(a, weight)


_THIN = 4
"""Channels up to which a convolution's transpose is a matrix product."""

_FORWARD = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _argument(node: Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _each(value: Any, axes: int) -> tuple[int, ...]:
    whole = [value] * axes if isinstance(value, int) else list(value)
    return tuple(whole * axes if len(whole) == 1 else whole)


class Convolution(Weighted):
    """A convolution of one, two or three axes with any stride, padding, dilation and groups."""

    options = frozenset({"bias", "stride", "padding", "output_padding", "groups", "dilation"})

    def weight(self, node: Node, view: View) -> Any:
        """Return the kernel [C_out, C_in / groups, ...]."""
        return view.fixed(node.args[1])

    def bias(self, node: Node, view: View) -> Any:
        """Return c as [C, 1, ...]."""
        return _per_channel(view.fixed(_argument(node, 2, "bias", None)), len(node.shape) - 1)

    def geometry(self, node: Node) -> tuple[tuple[int, ...], Any, tuple[int, ...], int]:
        """Return stride, padding, dilation and groups."""
        axes = len(node.shape) - 1
        padding = _argument(node, 4, "padding", 0)
        return (
            _each(_argument(node, 3, "stride", 1), axes),
            padding if isinstance(padding, str) else _each(padding, axes),
            _each(_argument(node, 5, "dilation", 1), axes),
            int(_argument(node, 6, "groups", 1)),
        )

    def times(self, node: Node, view: View, weight: Tensor, x: Tensor) -> Tensor:
        """Return the convolution without bias."""
        stride, padding, dilation, groups = self.geometry(node)
        return _FORWARD[len(stride)](x, weight, None, stride, padding, dilation, groups)

    def transposed(self, node: Node, view: View, weight: Tensor, a: Tensor) -> Tensor:
        """Return the transposed convolution that ends at the input's size."""
        stride, padding, dilation, groups = self.geometry(node)
        (parent,) = batched_arguments(node)
        kernel = weight.shape[2:]
        if isinstance(padding, str):
            padding = _explicit(padding, kernel, dilation)
        if len(stride) == 2 and groups == 1 and weight.shape[1] <= _THIN:
            # torch's transposed convolution onto few channels takes five times as long as a product and a sum of its taps.
            columns = weight.flatten(1).t() @ a.flatten(2)
            return F.fold(columns, parent.shape[1:], kernel, dilation, padding, stride)
        extra = [
            size - ((out - 1) * step - 2 * pad + gap * (side - 1) + 1)
            for size, out, step, pad, gap, side in zip(
                parent.shape[1:], node.shape[1:], stride, padding, dilation, kernel, strict=True
            )
        ]
        return _TRANSPOSED[len(stride)](a, weight, None, stride, padding, extra, groups, dilation)

    def start(self, node: Node, rows: Tensor, signs: Tensor, walk: Walk) -> bool:
        """Take the kernel of each row's channel as a patch."""
        weight, bias = self.weight(node, walk.view), self.bias(node, walk.view)
        if not self._patchable(node, weight, bias):
            return False
        _, height, width = node.shape
        channel, y, x = rows // (height * width), rows // width % height, rows % width
        taken = weight.permute(0, 2, 3, 1).contiguous().index_select(0, channel.flatten()).unflatten(0, rows.shape)
        columns = taken.mul_(signs[:, None, None, None])
        self._folded(node, columns[:, :, None, None], torch.stack([y, x], -1), walk)
        if bias is not None:
            walk.add(bias.flatten()[channel] * signs)
        return True

    def patched(self, node: Node, patches: Patches, walk: Walk) -> bool:
        """Send every entry through the kernel by one matrix product, and sum what the taps give."""
        weight, bias = self.weight(node, walk.view), self.bias(node, walk.view)
        if not self._patchable(node, weight, bias):
            return False
        a = patches.coefficients
        kernel = weight.permute(0, 2, 3, 1)
        if kernel.shape[3] <= _THIN:
            self._spread(node, kernel, patches, walk)
        else:
            self._folded(node, self._columns(a, kernel), patches.places, walk)
        if bias is not None:
            walk.add(a.sum((2, 3)) @ bias.flatten())
        return True

    def _columns(self, a: Tensor, kernel: Tensor) -> Tensor:
        """Return what each tap gives of each entry: [B, S, h, w, kernel h, kernel w, C]."""
        return (a.reshape(-1, a.shape[-1]) @ kernel.flatten(1)).reshape(*a.shape[:-1], *kernel.shape[1:])

    def _spread(self, node: Node, kernel: Tensor, patches: Patches, walk: Walk) -> None:
        """Send patches onto few channels by one product with what each entry gives: sums over so few would be slow."""
        (parent,) = batched_arguments(node)
        stride, padding, dilation, _ = self.geometry(node)
        a = patches.coefficients
        _, _, tall, wide, channels = a.shape
        size = tall * wide * channels
        single = torch.eye(size, dtype=a.dtype, device=a.device).reshape(1, size, tall, wide, channels)
        sides = [
            (side - 1) * step + (taps - 1) * gap + 1
            for side, step, taps, gap in zip((tall, wide), stride, kernel.shape[1:3], dilation, strict=True)
        ]
        here = patches.places.new_zeros(1, size, 2)
        whole = fold(self._columns(single, kernel), here, (parent.shape[0], *sides), stride, (0, 0), dilation)
        spread = a.flatten(2) @ whole.coefficients[0].flatten(1)
        moved = patches.places * patches.places.new_tensor(stride) - patches.places.new_tensor(padding)
        found = Patches(spread.unflatten(2, (*sides, parent.shape[0])), moved, parent.shape)
        walk.send(parent, found.clipped() if any(padding) else found)

    def _patchable(self, node: Node, weight: Any, bias: Any) -> bool:
        stride, padding, _, groups = self.geometry(node)
        tensors = [one for one in (weight, bias) if one is not None]
        if len(stride) != 2 or groups != 1 or isinstance(padding, str) or any(isinstance(t, Interval) for t in tensors):
            return False
        return fast(*tensors)

    def _folded(self, node: Node, columns: Tensor, places: Tensor, walk: Walk) -> None:
        (parent,) = batched_arguments(node)
        stride, padding, dilation, _ = self.geometry(node)
        if columns.shape[2:4] == (1, 1) and not any(padding) and set(dilation) == {1}:
            # The window of one entry is its kernel, and inside the image.
            walk.send(parent, Patches(columns[:, :, 0, 0], places * places.new_tensor(stride), parent.shape))
            return
        walk.send(parent, fold(columns, places, parent.shape, stride, padding, dilation))


def _explicit(padding: str, kernel: Any, dilation: tuple[int, ...]) -> tuple[int, ...]:
    if padding == "valid":
        return (0,) * len(dilation)
    total = [gap * (side - 1) for gap, side in zip(dilation, kernel, strict=True)]
    if any(one % 2 for one in total):
        raise InputError(
            "a convolution with padding='same' and an even kernel pads its sides differently; write it with explicit padding."
        )
    return tuple(one // 2 for one in total)


class TransposedConvolution(Weighted):
    """A transposed convolution of one, two or three axes."""

    options = frozenset({"bias", "stride", "padding", "output_padding", "groups", "dilation"})

    def weight(self, node: Node, view: View) -> Any:
        """Return the kernel [C_in, C_out / groups, ...]."""
        return view.fixed(node.args[1])

    def bias(self, node: Node, view: View) -> Any:
        """Return c as [C, 1, ...]."""
        return _per_channel(view.fixed(_argument(node, 2, "bias", None)), len(node.shape) - 1)

    def _geometry(self, node: Node) -> tuple[Any, ...]:
        axes = len(node.shape) - 1
        stride, padding, extra = (
            _each(_argument(node, place, name, default), axes)
            for place, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "output_padding", 0))
        )
        return (
            stride,
            padding,
            extra,
            int(_argument(node, 6, "groups", 1)),
            _each(_argument(node, 7, "dilation", 1), axes),
        )

    def times(self, node: Node, view: View, weight: Tensor, x: Tensor) -> Tensor:
        """Return the transposed convolution without bias."""
        stride, padding, extra, groups, dilation = self._geometry(node)
        return _TRANSPOSED[len(stride)](x, weight, None, stride, padding, extra, groups, dilation)

    def transposed(self, node: Node, view: View, weight: Tensor, a: Tensor) -> Tensor:
        """Return the plain convolution."""
        stride, padding, _, groups, dilation = self._geometry(node)
        (parent,) = batched_arguments(node)
        out = _FORWARD[len(stride)](a, weight, None, stride, padding, dilation, groups)
        for axis, side in enumerate(parent.shape[1:], start=2):
            out = out.narrow(axis, 0, side)
        return out


class Scale(Weighted):
    """x times a fixed factor, entry by entry, plus a fixed offset: products, quotients, negation, differences, batch norm."""

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


def _per_channel(value: Any, axes: int) -> Any:
    if value is None:
        return None
    if isinstance(value, Interval):
        return Interval(_per_channel(value.lower, axes), _per_channel(value.upper, axes))
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
            raise InputError(f"{node.where}: an interval of divisors is not supported.")
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
            return _per_channel(scale, axes)
        if isinstance(gamma, Interval):
            return _per_channel(Interval(gamma.lower * scale, gamma.upper * scale), axes)
        return _per_channel(gamma * scale, axes)

    def patched(self, node: Node, patches: Patches, walk: Walk) -> bool:
        """Multiply each channel."""
        weight, bias = self.weight(node, walk.view), self.bias(node, walk.view)
        if isinstance(weight, Interval) or isinstance(bias, Interval):
            return False
        (parent,) = batched_arguments(node)
        walk.add(patches.coefficients.sum((2, 3)) @ bias.flatten())
        walk.send(parent, Patches(patches.coefficients * weight.flatten(), patches.places, patches.image))
        return True

    def bias(self, node: Node, view: View) -> Any:
        """Return β - weight * mean."""
        axes = len(node.shape) - 1
        weight, beta = self.weight(node, view), view.fixed(node.args[2])
        mean = _per_channel(view.fixed(node.args[3]), axes)
        shift: Any
        if isinstance(weight, Interval):
            shift = Interval.around(-weight.centre * mean, weight.reach * mean.abs())
        else:
            shift = -weight * mean
        if beta is None:
            return shift
        beta = _per_channel(beta, axes)
        if not isinstance(shift, Interval) and not isinstance(beta, Interval):
            return shift + beta
        a, b = _interval(shift), _interval(beta)
        return Interval(a.lower + b.lower, a.upper + b.upper)


def _interval(value: Any) -> Interval:
    return value if isinstance(value, Interval) else Interval(value, value)


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
