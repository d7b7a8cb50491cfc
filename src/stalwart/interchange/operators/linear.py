"""Operators linear in the input: products with matrices, convolutions, batch normalisation."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stalwart.interchange.onnx_graph import Computed, Constant, Node, Recipe, Result, Shape, batched
from stalwart.interchange.operators.elementwise import reshaped
from stalwart.interchange.operators.windows import Window, torch_padding, window_of

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def matmul(node: Node) -> Result:
    """Return numpy's matrix product; with a constant matrix it is a linear layer."""
    a, b = node.at(0), node.at(1)
    if a is None or b is None:
        raise node.refuse("an input is missing")
    shape = _product_shape(node, a.shape, b.shape)
    if isinstance(a, Computed) and isinstance(b, Constant) and len(b.shape) <= 2:
        matrix = node.tensor(b.array)
        return Recipe(F.linear, (a,), {"weight": _transposed(matrix.reshape(len(matrix), -1))}, shape)
    if isinstance(a, Constant) and isinstance(b, Computed) and len(a.shape) == 2 and math.prod(b.shape) == a.shape[1]:
        # One column: the same product as of a row with the transposed matrix.
        matrix, width = node.tensor(a.array), a.shape[1]
        if b.body == (width,):
            return Recipe(F.linear, (b,), {"weight": matrix}, shape)
        return Recipe(lambda x, weight: F.linear(reshaped(x, (width,)), weight), (b,), {"weight": matrix}, shape)
    return _general_product(node, a, b, shape)


def _transposed(matrix: Tensor) -> Tensor:
    return matrix.T.contiguous()


def _product_shape(node: Node, a: Shape, b: Shape) -> Shape:
    """Return the shape of numpy's ``a @ b``."""
    if not a or not b or a[-1] != b[-2:][0]:
        raise node.refuse(f"shapes {list(a)} and {list(b)} cannot be multiplied")
    batch = tuple(np.broadcast_shapes(a[:-2], b[:-2]))
    return batch + (a[-2:-1] if len(a) > 1 else ()) + (b[-1:] if len(b) > 1 else ())


def _general_product(node: Node, a: Constant | Computed, b: Constant | Computed, shape: Shape) -> Recipe:
    """Return the product of two tensors of any rank, as a product of stacks of matrices."""
    wide_a = (1, *a.shape) if len(a.shape) == 1 else a.shape
    wide_b = (*b.shape, 1) if len(b.shape) == 1 else b.shape
    rank = max(len(wide_a), len(wide_b))
    padded = [(1,) * (rank - len(wide)) + wide for wide in (wide_a, wide_b)]
    if rank > 2 and padded[0][0] == padded[1][0] == 1:
        padded = [wide[1:] for wide in padded]  # that axis is the batch axis
    computed = tuple(value for value in (a, b) if isinstance(value, Computed))
    bodies = [wide if isinstance(value, Computed) else None for value, wide in zip((a, b), padded, strict=True)]

    def run(*given: Tensor) -> Tensor:
        left, right = given if isinstance(a, Computed) else given[::-1]
        left, right = (x if body is None else reshaped(x, body) for x, body in zip((left, right), bodies, strict=True))
        return torch.matmul(left, right)

    tensors = {}
    for value, wide in zip((a, b), padded, strict=True):
        if isinstance(value, Constant):
            tensors["constant"] = node.tensor(value.array).reshape(wide)
    return Recipe(run, computed, tensors, shape)


def gemm(node: Node) -> Result:
    """Return alpha A' B' + beta C, where A' and B' may be transposed; with a constant B and C it is a linear layer."""
    alpha, beta = float(node.attribute("alpha", 1.0)), float(node.attribute("beta", 1.0))
    transpose_a, transpose_b = node.flag("transA"), node.flag("transB")
    a, b, c = node.computed(0), node.weight(1), node.at(2)
    if len(a.shape) != 2 or b.dim() != 2:
        raise node.refuse(f"it multiplies tensors of shapes {list(a.shape)} and {list(b.shape)}, not matrices")
    if transpose_a:
        raise node.refuse("it transposes its first input, which moves the batch axis")
    weight = b if transpose_b else _transposed(b)
    weight = weight if alpha == 1.0 else alpha * weight
    shape = (a.shape[0], len(weight))
    if c is None:
        return Recipe(F.linear, (a,), {"weight": weight}, shape)
    if isinstance(c, Constant):
        bias = node.tensor(c.array) if beta == 1.0 else beta * node.tensor(c.array)
        if np.broadcast_shapes(c.shape, (1, len(weight))) != (1, len(weight)):
            raise node.refuse(f"its third input of shape {list(c.shape)} is not one number a column")
        return Recipe(F.linear, (a,), {"weight": weight, "bias": bias.reshape(-1).expand(len(weight)).clone()}, shape)
    if c.shape != shape:
        raise node.refuse(
            f"its third input of shape {list(c.shape)} does not have the shape {list(shape)} of the product"
        )
    return Recipe(lambda x, c, weight: F.linear(x, weight) + beta * c, (a, c), {"weight": weight}, shape)


def _filters(node: Node, transposed: bool) -> tuple[Computed, dict[str, Tensor], int, int]:
    """Return a convolution's input, its weight and bias, the number of its spatial axes, and its groups."""
    x, tensors = node.computed(0), {"weight": node.weight(1)}
    if node.at(2) is not None:
        tensors["bias"] = node.weight(2)
    spatial = tensors["weight"].dim() - 2
    if spatial not in _CONV or len(x.shape) != spatial + 2 or not batched(x.shape):
        raise node.refuse(
            f"filters of shape {list(tensors['weight'].shape)} meet a tensor of shape {list(x.shape)}; "
            "convolutions take [1, channels] and one to three more axes"
        )
    kernel = node.ints("kernel_shape")
    if kernel is not None and kernel != list(tensors["weight"].shape[2:]):
        raise node.refuse(f"kernel_shape {kernel} contradicts filters of shape {list(tensors['weight'].shape)}")
    groups, (first, second) = int(node.attribute("group", 1)), tensors["weight"].shape[:2]
    taken, given = (first, second * groups) if transposed else (second * groups, first)
    biases = tuple(tensors["bias"].shape) if "bias" in tensors else (given,)
    if groups < 1 or first % groups or taken != x.shape[1] or biases != (given,):
        raise node.refuse(
            f"filters of shape {list(tensors['weight'].shape)} in {groups} groups do not fit {x.shape[1]} channels, or the bias"
        )
    return x, tensors, spatial, groups


def conv(node: Node) -> Result:
    """Return the convolution (1d, 2d, 3d) with constant filters."""
    x, tensors, spatial, groups = _filters(node, transposed=False)
    window = window_of(node, tensors["weight"].shape[2:], x.shape[2:])
    function = _CONV[spatial]

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not window.symmetric:
            x = F.pad(x, torch_padding(window.begin, window.end))
        padding = window.begin if window.symmetric else 0
        return function(x, weight, bias, window.strides, padding, window.dilations, groups)

    return Recipe(run, (x,), tensors)


def conv_transpose(node: Node) -> Result:
    """Return the transposed convolution (1d, 2d, 3d) with constant filters."""
    x, tensors, spatial, groups = _filters(node, transposed=True)
    extra = node.ints("output_padding") or [0] * spatial
    window = _cut(node, tensors["weight"].shape[2:], x.shape[2:], extra)
    function = _CONV_TRANSPOSE[spatial]

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        padding = window.begin if window.symmetric else 0
        y = function(x, weight, bias, window.strides, padding, extra, groups, window.dilations)
        return y if window.symmetric else F.pad(y, [-width for width in torch_padding(window.begin, window.end)])

    return Recipe(run, (x,), tensors)


def _cut(node: Node, kernel: Sequence[int], sides: Sequence[int], extra: Sequence[int]) -> Window:
    """Return the window of a transposed convolution, whose padding says how much of the full result is cut off."""
    auto, wanted = node.attribute("auto_pad", "NOTSET"), node.ints("output_shape")
    window = window_of(node, kernel, sides, auto_pads=False)
    limits = [max(pair) for pair in zip(window.strides, window.dilations, strict=True)]
    if len(extra) != len(sides) or not all(0 <= more < limit for more, limit in zip(extra, limits, strict=True)):
        raise node.refuse(f"output_padding {extra} is not below strides or dilations")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [side * stride for side, stride in zip(sides, window.strides, strict=True)]
    if wanted is None:
        return window
    begin, end = [], []
    for axis, target in enumerate(wanted[-len(sides) :]):
        reach = (kernel[axis] - 1) * window.dilations[axis] + 1
        cut = (sides[axis] - 1) * window.strides[axis] + reach + extra[axis] - target
        if cut < 0:
            raise node.refuse(f"its full result is shorter than the {target} numbers it asks for")
        begin.append(cut // 2 if auto == "SAME_UPPER" else cut - cut // 2)
        end.append(cut - begin[-1])
    return Window(window.strides, window.dilations, tuple(begin), tuple(end))


def batch_normalization(node: Node) -> Result:
    """Return (x - mean) / sqrt(var + eps) * weight + bias by channel, with the stored mean and variance."""
    node.attribute("momentum")
    node.expect("training_mode", 0)
    node.expect("spatial", 1)
    eps = float(node.attribute("epsilon", 1e-5))
    x = node.computed()
    weight, bias, mean, variance = (node.weight(index) for index in range(1, 5))
    if not batched(x.shape) or {tuple(part.shape) for part in (weight, bias, mean, variance)} != {x.shape[1:2]}:
        raise node.refuse(f"it normalises a tensor of shape {list(x.shape)}; it takes [1, channels, ...]")
    tensors = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    return Recipe(
        lambda x, weight, bias, mean, var: F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps),
        (x,),
        tensors,
    )
