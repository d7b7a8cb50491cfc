"""Operators that move numbers without changing them, and sums over axes."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stalwart.interchange.onnx_graph import Computed, Constant, Node, Recipe, Result, Shape, batched, body_of
from stalwart.interchange.operators.elementwise import reshaped
from stalwart.interchange.operators.windows import torch_padding


def to_shape(rule: Callable[[Node, Shape], Shape]) -> Callable[[Node], Result]:
    """Return the operator that only changes the shape, as ``rule`` says."""

    def operator(node: Node) -> Result:
        x = node.computed()
        shape = rule(node, x.shape)
        if math.prod(shape) != math.prod(x.shape) or min(shape, default=1) < 1:
            raise node.refuse(f"a tensor of shape {list(x.shape)} cannot take the shape {list(shape)}")
        body = body_of(shape)
        if body == x.body:
            return Computed(x.slot, shape)
        return Recipe(lambda x: reshaped(x, body), (x,), {}, shape)

    return operator


def reshape_shape(node: Node, shape: Shape) -> Shape:
    """Return the shape that Reshape asks for: 0 keeps an axis (unless ``allowzero``), -1 takes what is left."""
    target = node.ints(None, 1)
    if target is None:
        raise node.refuse("its shape is missing")
    if not node.flag("allowzero"):
        if any(length == 0 and at >= len(shape) for at, length in enumerate(target)):
            raise node.refuse(f"the shape {target} copies an axis that {list(shape)} does not have")
        target = [shape[at] if length == 0 else length for at, length in enumerate(target)]
    known = math.prod(length for length in target if length != -1)
    if (
        min(target, default=0) < -1
        or target.count(-1) > 1
        or (-1 in target and (not known or math.prod(shape) % known))
    ):
        raise node.refuse(f"a tensor of shape {list(shape)} cannot take the shape {target}")
    return tuple(math.prod(shape) // known if length == -1 else length for length in target)


def flatten_shape(node: Node, shape: Shape) -> Shape:
    """Return the two axes that Flatten leaves: those before ``axis`` and the others."""
    axis = int(node.attribute("axis", 1))
    if not -len(shape) <= axis <= len(shape):
        raise node.refuse(f"axis {axis} does not exist in a tensor of shape {list(shape)}")
    axis += len(shape) if axis < 0 else 0
    return math.prod(shape[:axis]), math.prod(shape[axis:])


def squeeze_shape(node: Node, shape: Shape) -> Shape:
    """Return the shape without the named axes of length 1, or without all of them."""
    named = node.ints("axes", 1)
    axes = [at for at, n in enumerate(shape) if n == 1] if named is None else [node.axis(at, shape) for at in named]
    if any(shape[at] != 1 for at in axes):
        raise node.refuse(f"axes {axes} of a tensor of shape {list(shape)} are not all of length 1")
    return tuple(length for at, length in enumerate(shape) if at not in axes)


def unsqueeze_shape(node: Node, shape: Shape) -> Shape:
    """Return the shape with an axis of length 1 at each named place of the result."""
    named = node.ints("axes", 1)
    if named is None:
        raise node.refuse("its axes are missing")
    result = (1,) * (len(shape) + len(named))
    places = {node.axis(at, result) for at in named}
    if len(places) != len(named):
        raise node.refuse(f"its axes {named} name a place twice")
    rest = iter(shape)
    return tuple(1 if at in places else next(rest) for at in range(len(result)))


def shape_of(node: Node, shape: Shape) -> np.ndarray:
    """Return what Shape gives: the lengths of the axes from ``start`` to ``end``."""
    start, end = node.attribute("start", 0), node.attribute("end", len(shape))
    return np.array(shape[int(start) : int(end)], np.int64)


def shape(node: Node) -> Result:
    """Return the shape as a constant: the file fixes every axis, and its batch is 1."""
    return Constant(shape_of(node, node.computed().shape))


def transpose(node: Node) -> Result:
    """Permute the axes; the batch axis stays first."""
    x = node.computed()
    rank = len(x.shape)
    order = node.ints("perm") or list(range(rank))[::-1]
    if sorted(order) != list(range(rank)):
        raise node.refuse(f"perm {order} is no permutation of {rank} axes")
    stored = list(range(len(x.body) + 1))
    for to, origin in enumerate(order):
        if not (batched(x.shape) and to == origin == 0):
            stored[to + len(stored) - rank] = node.stored_axis(origin, x)
    return Recipe(lambda x: x.permute(stored), (x,), {}, tuple(x.shape[at] for at in order))


def concat(node: Node) -> Result:
    """Join along an axis; constants are repeated for each sample."""
    values = [value for value in node.inputs if value is not None]
    first = next(value for value in values if isinstance(value, Computed))
    axis = node.axis(int(node.attribute("axis", 1)), first.shape)
    others = {value.shape[:axis] + value.shape[axis + 1 :] for value in values}
    if len(others) != 1 or len({len(value.shape) for value in values}) != 1:
        raise node.refuse(
            f"tensors of shapes {[list(value.shape) for value in values]} cannot be joined along axis {axis}"
        )
    stored = node.stored_axis(axis, first)
    constants = [node.tensor(v.array).reshape(body_of(v.shape)) for v in values if isinstance(v, Constant)]
    computed = tuple(value for value in values if isinstance(value, Computed))
    fixed = [isinstance(value, Constant) for value in values]

    def run(*given: Tensor) -> Tensor:
        xs, cs = iter(given[: len(computed)]), iter(given[len(computed) :])
        batch = given[0].shape[0]
        return torch.cat([_repeat(next(cs), batch) if known else next(xs) for known in fixed], stored)

    if any(batched(value.shape) != batched(first.shape) for value in values):
        raise node.refuse(f"it joins tensors of shapes {[list(value.shape) for value in values]} along the batch axis")
    whole = sum(value.shape[axis] for value in values)
    names = {f"constant{at}": constant for at, constant in enumerate(constants)}
    return Recipe(run, computed, names, (*first.shape[:axis], whole, *first.shape[axis + 1 :]))


def _repeat(constant: Tensor, batch: int) -> Tensor:
    return constant.expand(batch, *constant.shape)


def split(node: Node) -> Result:
    """Cut into parts along an axis: of the given sizes, or as equal as possible."""
    x = node.computed()
    axis = node.axis(int(node.attribute("axis", 0)), x.shape)
    stored, length = node.stored_axis(axis, x), x.shape[axis]
    sizes = node.ints("split", 1)
    parts = int(node.attribute("num_outputs", len(node.outputs)))
    if sizes is None:
        # All parts alike but the last, which may be smaller.
        size = -(-length // parts)
        sizes = [size] * (parts - 1) + [length - size * (parts - 1)]
    if sum(sizes) != length or min(sizes) < 1 or len(sizes) != len(node.outputs):
        raise node.refuse(f"sizes {sizes} do not cut {length} numbers into {len(node.outputs)} parts")
    starts = [sum(sizes[:at]) for at in range(len(sizes))]
    return [
        _part(x, stored, start, size, (*x.shape[:axis], size, *x.shape[axis + 1 :]))
        for start, size in zip(starts, sizes, strict=True)
    ]


def _part(x: Computed, stored: int, start: int, size: int, shape: Shape) -> Recipe:
    return Recipe(lambda x: x.narrow(stored, start, size), (x,), {}, shape)


def slices(node: Node, shape: Shape) -> list[tuple[int, range]]:
    """Return the axes that Slice cuts, each with the places it keeps."""
    names = ("starts", "ends", "axes", "steps")
    starts, ends, axes, steps = (node.ints(name, at) for at, name in enumerate(names, start=1))
    if starts is None or ends is None:
        raise node.refuse("its starts or ends are missing")
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise node.refuse(f"starts {starts}, ends {ends}, axes {axes} and steps {steps} do not fit each other")
    cut = [node.axis(axis, shape) for axis in axes]
    bounds = zip(cut, starts, ends, steps, strict=True)
    kept = [(axis, range(*slice(start, end, step).indices(shape[axis]))) for axis, start, end, step in bounds]
    if len(set(cut)) != len(cut) or not all(len(places) for _, places in kept):
        raise node.refuse("it names an axis twice, or nothing is left")
    return kept


def slice_(node: Node) -> Result:
    """Keep some places of some axes."""
    x = node.computed()
    index = [slice(None)] * (1 + len(x.body))
    backwards: dict[int, Tensor] = {}
    shape = list(x.shape)
    for axis, places in slices(node, x.shape):
        if places == range(x.shape[axis]):
            continue
        shape[axis], stored = len(places), node.stored_axis(axis, x)
        if places.step > 0:
            index[stored] = slice(places.start, places.stop, places.step)
        else:
            backwards[stored] = torch.tensor(list(places))
    if tuple(shape) == x.shape and not backwards:
        return x
    cut, turned = tuple(index), list(backwards)

    def run(x: Tensor, *places: Tensor) -> Tensor:
        x = x[cut]
        for stored, kept in zip(turned, places, strict=True):
            x = x.index_select(stored, kept)
        return x

    return Recipe(run, (x,), {f"places{axis}": kept for axis, kept in backwards.items()}, tuple(shape))


def gather(node: Node) -> Result:
    """Pick places of one axis by constant indices."""
    x, index = node.computed(0), node.constant(1)
    if index is None or index.dtype.kind != "i":
        raise node.refuse("its indices are missing or no integers")
    axis = node.axis(int(node.attribute("axis", 0)), x.shape)
    stored, length = node.stored_axis(axis, x), x.shape[axis]
    if index.size == 0 or index.min() < -length or index.max() >= length:
        raise node.refuse(f"its indices leave [-{length}, {length})")
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    places = torch.from_numpy(np.ravel(index).astype(np.int64) % length)
    if index.ndim == 0:
        only = int(places[0])
        return Recipe(lambda x: x.select(stored, only), (x,), {}, shape)
    return Recipe(lambda x, places: x.index_select(stored, places), (x,), {"places": places}, shape)


def pad(node: Node) -> Result:
    """Surround with a constant; negative widths cut off."""
    x = node.computed()
    node.expect("mode", "constant")
    old = node.opset < 11
    widths = node.ints("pads") if old else node.ints(None, 1)
    value = node.attribute("value", 0.0) if old else node.constant(2)
    axes = None if old else node.ints(None, 3)
    axes = list(range(len(x.shape))) if axes is None else [node.axis(axis, x.shape) for axis in axes]
    if widths is None or len(widths) != 2 * len(axes) or len(set(axes)) != len(axes):
        raise node.refuse(f"pads {widths} do not fit axes {axes}")
    begin, end = [0] * len(x.body), [0] * len(x.body)
    for at, axis in enumerate(axes):
        before, behind = widths[at], widths[at + len(axes)]
        if before or behind:
            stored = node.stored_axis(axis, x) - 1
            begin[stored], end[stored] = before, behind
    padding, filling = torch_padding(begin, end), 0.0 if value is None else float(np.reshape(value, ()))
    if not any(padding):
        return x
    shape = list(x.shape)
    for stored, (before, behind) in enumerate(zip(begin, end, strict=True)):
        shape[stored + len(shape) - len(x.body)] += before + behind
    return Recipe(lambda x: F.pad(x, padding, value=filling), (x,), {}, tuple(shape))


def expand(node: Node) -> Result:
    """Broadcast to a constant shape."""
    x, target = node.computed(), node.ints(None, 1)
    if target is None:
        raise node.refuse("its shape is missing")
    shape = tuple(np.broadcast_shapes(x.shape, tuple(target)))
    padded = (1,) * (len(shape) - len(x.shape)) + x.shape
    view, body = padded[1:] if batched(shape) else padded, body_of(shape)
    return Recipe(lambda x: reshaped(x, view).expand(x.shape[0], *body), (x,), {}, shape)


def reduce(function: Callable[..., Tensor], axes_input_since: int) -> Callable[[Node], Result]:
    """Return a sum or mean over axes, which are an attribute before opset ``axes_input_since`` and an input from it on."""

    def operator(node: Node) -> Result:
        x = node.computed()
        keep = node.flag("keepdims", True)
        named = node.ints("axes", 1) if node.opset >= axes_input_since else node.ints("axes")
        if not named:
            if node.flag("noop_with_empty_axes"):
                return x
            named = list(range(len(x.shape)))
        axes = {node.axis(axis, x.shape) for axis in named}
        stored = sorted(node.stored_axis(axis, x) for axis in axes)
        lengths = [(1 if at in axes else n) for at, n in enumerate(x.shape) if keep or at not in axes]
        return Recipe(lambda x: function(x, stored, keepdim=keep), (x,), {}, tuple(lengths))

    return operator
