"""Convolutions and their transposes: how they act, and how windows of coefficients pass them."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stalwart.bounds.interval import Interval
from stalwart.bounds.patches import Patches, fast
from stalwart.bounds.rules.base import View, Walk, batched_arguments
from stalwart.bounds.rules.weighted import Weighted, per_channel
from stalwart.core.errors import InputError
from stalwart.graph import Node

_THIN = 4
"""Channels up to which a convolution's transpose is a product and a sum of its taps: torch's takes five times as long."""

_SMALL = 16
"""Entries of a channel up to which a window goes through a thin convolution as one product."""

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
        return per_channel(view.fixed(_argument(node, 2, "bias", None)), len(node.shape) - 1)

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

    def shifted(self, node: Node, view: View, weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        """Return the convolution with its bias in one operator."""
        stride, padding, dilation, groups = self.geometry(node)
        return _FORWARD[len(stride)](x, weight, bias.flatten(), stride, padding, dilation, groups)

    def transposed(self, node: Node, view: View, weight: Tensor, a: Tensor) -> Tensor:
        """Return the transposed convolution that ends at the input's size."""
        stride, padding, dilation, groups = self.geometry(node)
        (parent,) = batched_arguments(node)
        kernel = weight.shape[2:]
        if isinstance(padding, str):
            padding = _explicit(padding, kernel, dilation)
        if len(stride) == 2 and groups == 1 and weight.shape[1] <= _THIN:
            return _thin(a, weight, parent.shape[1:], dilation, padding, stride)
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
        _, _, dilation, _ = self.geometry(node)
        sides = [(taps - 1) * gap + 1 for taps, gap in zip(weight.shape[2:], dilation, strict=True)]
        kernel = weight.new_zeros(weight.shape[0], *sides, weight.shape[1])
        kernel[:, :: dilation[0], :: dilation[1]] = weight.permute(0, 2, 3, 1)
        channel, y, x = rows // (height * width), rows // width % height, rows % width
        taken = kernel.index_select(0, channel.flatten()).unflatten(0, rows.shape)
        self._send(node, taken.mul_(signs[:, None, None, None]), torch.stack([y, x], -1), walk)
        if bias is not None:
            walk.add(bias.flatten()[channel] * signs)
        return True

    def patched(self, node: Node, patches: Patches, walk: Walk) -> bool:
        """Send every window through the transposed convolution."""
        weight, bias = self.weight(node, walk.view), self.bias(node, walk.view)
        if not self._patchable(node, weight, bias):
            return False
        a = patches.coefficients
        stride, _, dilation, _ = self.geometry(node)
        if weight.shape[1] <= _THIN and a[0, 0, ..., 0].numel() <= _SMALL:
            # One product with what each entry of a window gives.
            single = torch.eye(a[0, 0].numel(), dtype=a.dtype, device=a.device).unflatten(1, a.shape[2:])
            whole = _transposed(single.movedim(-1, 1), weight, stride, dilation).movedim(1, -1)
            spread = (a.flatten(2) @ whole.flatten(1)).unflatten(2, whole.shape[1:])
        else:
            spread = _transposed(a.flatten(0, 1).movedim(-1, 1), weight, stride, dilation).movedim(1, -1)
            spread = spread.contiguous().unflatten(0, a.shape[:2])
        self._send(node, spread, patches.places, walk)
        if bias is not None and node not in walk.counted:
            walk.add(a.sum((2, 3)) @ bias.flatten())
        return True

    def _patchable(self, node: Node, weight: Any, bias: Any) -> bool:
        stride, padding, _, groups = self.geometry(node)
        tensors = [one for one in (weight, bias) if one is not None]
        if len(stride) != 2 or groups != 1 or isinstance(padding, str) or any(isinstance(t, Interval) for t in tensors):
            return False
        return fast(*tensors)

    def _send(self, node: Node, coefficients: Tensor, places: Tensor, walk: Walk) -> None:
        """Send windows on that lie ``places`` strides from the padded input's corner, without what padding took."""
        (parent,) = batched_arguments(node)
        stride, padding, _, _ = self.geometry(node)
        moved = places * places.new_tensor(stride) - places.new_tensor(padding)
        found = Patches(coefficients, moved, parent.shape)
        walk.send(parent, found.clipped() if any(padding) else found)


def _transposed(a: Tensor, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """Return the transposed convolution [N, C_in, h', w'] of a [N, C_out, h, w] without padding."""
    kernel = weight.shape[2:]
    if weight.shape[1] > _THIN:
        image = weight.contiguous(memory_format=torch.channels_last)
        return F.conv_transpose2d(a, image, None, stride, 0, 0, 1, dilation)
    sides = tuple(
        (side - 1) * step + (taps - 1) * gap + 1
        for side, step, taps, gap in zip(a.shape[2:], stride, kernel, dilation, strict=True)
    )
    return _thin(a, weight, sides, dilation, (0, 0), stride)


def _thin(
    a: Tensor,
    weight: Tensor,
    sides: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: tuple[int, ...],
    stride: tuple[int, ...],
) -> Tensor:
    """Return the transposed convolution [N, C_in, *sides] to few channels."""
    step = stride[0]
    if step == 1 or step != stride[1] or any(gap != 1 for gap in dilation):
        return F.fold(weight.flatten(1).t() @ a.flatten(2), sides, weight.shape[2:], dilation, padding, stride)
    # Each of the step x step entries that lie alike between strides sees its own taps: they are channels of a convolution
    # at the operand's size (Shi et al., 2016, arXiv 1609.05158).
    tall, wide = (-(-taps // step) for taps in weight.shape[2:])
    taps = F.pad(weight, (0, wide * step - weight.shape[3], 0, tall * step - weight.shape[2]))
    taps = taps.unflatten(3, (wide, step)).unflatten(2, (tall, step)).permute(1, 3, 5, 0, 2, 4)
    parts = F.conv2d(a, taps.flip(4, 5).flatten(0, 2), None, 1, (tall - 1, wide - 1))
    whole = F.pixel_shuffle(parts, step)
    (top, left), (height, width) = padding, sides
    return F.pad(whole, (-left, width + left - whole.shape[3], -top, height + top - whole.shape[2]))


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
        return per_channel(view.fixed(_argument(node, 2, "bias", None)), len(node.shape) - 1)

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
