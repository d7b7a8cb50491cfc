"""Operators on constants, carried out while the file is read: exporters compute shapes and scale weights with them."""

import math
from collections.abc import Callable

import numpy as np

from stalwart.interchange.onnx_graph import Node
from stalwart.interchange.operators.shapes import (
    flatten_shape,
    reshape_shape,
    shape_of,
    slices,
    squeeze_shape,
    unsqueeze_shape,
)

Fold = Callable[..., np.ndarray]

# Two small constants can multiply to a huge one; 1 GiB of float32 is enough.
MOST_NUMBERS = 2**28

_TYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}


def check_size(node: Node, count: int) -> None:
    """Refuse a constant of more than :data:`MOST_NUMBERS` numbers before it is made."""
    if count > MOST_NUMBERS:
        raise node.refuse(f"it makes a constant of {count} numbers, more than {MOST_NUMBERS}")


def _elementwise(function: Callable[..., np.ndarray]) -> Fold:
    def fold(node: Node, *arrays: np.ndarray) -> np.ndarray:
        check_size(node, math.prod(np.broadcast_shapes(*[array.shape for array in arrays])))
        with np.errstate(all="ignore"):
            return np.asarray(function(*arrays))

    return fold


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Divide; integers round towards zero, as in C."""
    return a / b if a.dtype.kind == "f" else np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


def _constant(node: Node) -> np.ndarray:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        found = node.attribute(name)
        if found is not None:
            kind = np.float32 if "float" in name else np.int64
            return found if isinstance(found, np.ndarray) else np.array(found, kind)
    raise node.refuse("it holds no dense numbers")


def _constant_of_shape(node: Node, shape: np.ndarray) -> np.ndarray:
    check_size(node, math.prod(int(length) for length in shape))
    filling = node.attribute("value", np.zeros(1, np.float32))
    return np.full([int(length) for length in shape], filling.reshape(()))


def _range(node: Node, start: np.ndarray, limit: np.ndarray, step: np.ndarray) -> np.ndarray:
    if not step:
        raise node.refuse("its step is 0")
    check_size(node, math.ceil(max((float(limit) - float(start)) / float(step), 0)))
    return np.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def _cast(node: Node, array: np.ndarray) -> np.ndarray:
    node.attribute("saturate")
    node.attribute("round_mode")
    if node.attribute("to") not in _TYPES:
        raise node.refuse("it casts to a type other than float32, float64, int32, int64 and bool")
    return array.astype(_TYPES[node.attribute("to")])


def _gather(node: Node, array: np.ndarray, index: np.ndarray) -> np.ndarray:
    check_size(node, math.prod(array.shape) * index.size)
    return np.asarray(np.take(array, index, axis=node.axis(int(node.attribute("axis", 0)), array.shape)))


def _concat(node: Node, *arrays: np.ndarray) -> np.ndarray:
    check_size(node, sum(array.size for array in arrays))
    return np.concatenate(arrays, axis=int(node.attribute("axis", 1)))


def _slice(node: Node, array: np.ndarray, *_: np.ndarray) -> np.ndarray:
    for axis, places in slices(node, array.shape):
        array = np.take(array, np.arange(places.start, places.stop, places.step), axis=axis)
    return array


def _expand(node: Node, array: np.ndarray, shape: np.ndarray) -> np.ndarray:
    target = np.broadcast_shapes(array.shape, tuple(int(length) for length in shape))
    check_size(node, math.prod(target))
    return np.broadcast_to(array, target).copy()


def _matmul(node: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    check_size(node, a.size // max(a.shape[-1], 1) * (b.size // max(a.shape[-1], 1)))
    return np.asarray(np.matmul(a, b))


def _reduce_prod(node: Node, array: np.ndarray, *_: np.ndarray) -> np.ndarray:
    axes, keep = node.ints("axes", 1), node.flag("keepdims", True)
    product = np.prod(array, axis=None if axes is None else tuple(axes), keepdims=keep, dtype=array.dtype)
    return np.asarray(product)


FOLDS: dict[str, Fold] = {
    "Add": _elementwise(np.add),
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Div": _elementwise(_divide),
    "Equal": _elementwise(np.equal),
    "Exp": _elementwise(np.exp),
    "Expand": _expand,
    "Flatten": lambda node, array: array.reshape(flatten_shape(node, array.shape)),
    "Floor": _elementwise(np.floor),
    "Gather": _gather,
    "Identity": lambda node, array: array,
    "Log": _elementwise(np.log),
    "MatMul": _matmul,
    "Max": _elementwise(np.maximum),
    "Min": _elementwise(np.minimum),
    "Mul": _elementwise(np.multiply),
    "Neg": _elementwise(np.negative),
    "Pow": _elementwise(lambda a, b: np.power(a, b).astype(a.dtype)),
    "Range": _range,
    "Reciprocal": _elementwise(np.reciprocal),
    "ReduceProd": _reduce_prod,
    "Reshape": lambda node, array, _: array.reshape(reshape_shape(node, array.shape)),
    "Shape": lambda node, array: shape_of(node, array.shape),
    "Slice": _slice,
    "Sqrt": _elementwise(np.sqrt),
    "Squeeze": lambda node, array, *_: array.reshape(squeeze_shape(node, array.shape)),
    "Sub": _elementwise(np.subtract),
    "Transpose": lambda node, array: array.transpose(node.ints("perm") or None),
    "Unsqueeze": lambda node, array, *_: array.reshape(unsqueeze_shape(node, array.shape)),
    "Where": _elementwise(np.where),
}
"""What each operator makes of constants: ``fold(node, *arrays)``. A new one is one function and one line."""
