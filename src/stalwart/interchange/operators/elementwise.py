"""Operators on each number alone: arithmetic with broadcasting, and activations."""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stalwart.interchange.onnx_graph import Computed, Constant, Node, Recipe, Result, Shape, batched

# Above it softplus(x) and x are the same float64.
_SOFTPLUS_LINEAR = 40.0


def unary(function: Callable[[Tensor], Tensor]) -> Callable[[Node], Result]:
    """Return the operator that applies a torch function of one tensor."""
    return lambda node: Recipe(function, (node.computed(),))


def arithmetic(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node], Result]:
    """Return the operator that applies a torch function of two tensors, with broadcasting."""
    return lambda node: broadcast(node, function)


def broadcast(node: Node, function: Callable[[Tensor, Tensor], Tensor]) -> Recipe:
    """Fold all inputs, constant or computed, by a function of two tensors from left to right, with numpy's broadcasting."""
    values = [value for value in node.inputs if value is not None]
    shape = tuple(np.broadcast_shapes(*[value.shape for value in values]))
    computed = [value for value in values if isinstance(value, Computed)]
    constants = [_trim(node.tensor(value.array), shape) for value in values if isinstance(value, Constant)]
    # Where in (*computed, *constants) each operand is, and the shape one sample must take to broadcast.
    order, views, seen = [], [], [0, len(computed)]
    for value in values:
        kind = int(isinstance(value, Constant))
        order.append(seen[kind])
        seen[kind] += 1
        views.append(_view(value, shape) if isinstance(value, Computed) else None)

    def run(*given: Tensor) -> Tensor:
        operands = [
            given[at] if view is None else reshaped(given[at], view) for at, view in zip(order, views, strict=True)
        ]
        return functools.reduce(function, operands)

    plain = order == sorted(order) and views == [None] * len(views) and len(order) == 2
    names = {f"constant{i}" if i else "constant": tensor for i, tensor in enumerate(constants)}
    return Recipe(function if plain else run, tuple(computed), names, shape)


def reshaped(x: Tensor, body: Shape) -> Tensor:
    """Return the batch with another shape of one sample."""
    return x.reshape(x.shape[0], *body)


def _view(value: Computed, shape: Shape) -> Shape | None:
    """Return the stored shape with which ``value`` broadcasts to a result of ONNX shape ``shape``; None if it has it."""
    padded = (1,) * (len(shape) - len(value.shape)) + value.shape
    body = padded[1:] if batched(shape) else padded
    return None if body == value.body else body


def _trim(constant: Tensor, shape: Shape) -> Tensor:
    """Drop the axis of length 1 that would meet the batch axis."""
    return constant[0] if constant.dim() == len(shape) and batched(shape) else constant


def add(node: Node) -> Result:
    """Add; a constant vector right behind a linear map becomes its bias."""
    for one, other in ((node.at(0), node.at(1)), (node.at(1), node.at(0))):
        if not (isinstance(one, Computed) and isinstance(other, Constant)):
            continue
        linear = node.recipe_of(one)
        if linear is None or linear.function is not F.linear or "bias" in linear.tensors:
            continue
        width = one.shape[-1]
        vector = other.array.size in (1, width) and other.array.size == (other.shape or (1,))[-1]
        if vector and len(other.shape) <= len(one.shape):
            bias = node.tensor(other.array).reshape(-1).expand(width).clone()
            return Recipe(F.linear, linear.inputs, {**linear.tensors, "bias": bias}, one.shape)
    return broadcast(node, torch.add)


def leaky_relu(node: Node) -> Result:
    """Return max(x, 0) + alpha min(x, 0)."""
    alpha = float(node.attribute("alpha", 0.01))
    return Recipe(lambda x: F.leaky_relu(x, alpha), (node.computed(),))


def prelu(node: Node) -> Result:
    """Return max(x, 0) + slope min(x, 0) for a slope that broadcasts to x."""
    x, slope = node.computed(0), node.weight(1)
    if np.broadcast_shapes(x.shape, tuple(slope.shape)) != x.shape:
        raise node.refuse(f"a slope of shape {list(slope.shape)} does not broadcast to {list(x.shape)}")
    wide = (1,) * (len(x.shape) - slope.dim()) + tuple(slope.shape)
    # torch's own operator takes one slope, or one a channel.
    if batched(x.shape) and all(length == 1 for axis, length in enumerate(wide) if axis != 1):
        return Recipe(F.prelu, (x,), {"weight": slope.reshape(-1)})
    return Recipe(lambda x, slope: torch.relu(x) - slope * torch.relu(-x), (x,), {"slope": _trim(slope, x.shape)})


def clip(node: Node) -> Result:
    """Return min(max(x, low), high); the limits are attributes up to opset 10 and constant inputs since."""
    limits = []
    for index, name in enumerate(("min", "max"), start=1):
        found = node.attribute(name) if node.opset < 11 else node.constant(index)
        limits.append(None if found is None else float(np.asarray(found).reshape(())))
    low, high = limits
    if low is None and high is None:
        return node.computed()
    if low is not None and high is not None and low > high:
        raise node.refuse(f"the lower limit {low} is above the upper limit {high}")
    return Recipe(lambda x: torch.clamp(x, low, high), (node.computed(),))


def elu(node: Node) -> Result:
    """Return x above 0 and alpha (exp(x) - 1) below."""
    alpha = float(node.attribute("alpha", 1.0))
    return Recipe(lambda x: F.elu(x, alpha), (node.computed(),))


def gelu(node: Node) -> Result:
    """Return x Φ(x), exactly or by the formula with tanh."""
    node.expect("approximate", "none", "tanh")
    approximate = node.attribute("approximate", "none")
    return Recipe(lambda x: F.gelu(x, approximate=approximate), (node.computed(),))


def hard_sigmoid(node: Node) -> Result:
    """Return min(max(alpha x + beta, 0), 1)."""
    alpha, beta = float(node.attribute("alpha", 0.2)), float(node.attribute("beta", 0.5))
    return Recipe(lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0), (node.computed(),))


def softplus(node: Node) -> Result:
    """Return log(1 + exp(x)); torch's default switches to x at 20, where float64 still sees the difference."""
    return Recipe(lambda x: F.softplus(x, 1.0, _SOFTPLUS_LINEAR), (node.computed(),))


def power(node: Node) -> Result:
    """Return base ** exponent; a constant exponent may be an integer."""
    exponent = node.at(1)
    if (
        isinstance(exponent, Constant)
        and exponent.array.size == 1
        and len(exponent.shape) <= len(node.computed().shape)
    ):
        value = float(exponent.array.reshape(()))
        return Recipe(lambda x: torch.pow(x, value), (node.computed(),))
    return broadcast(node, torch.pow)


def softmax(node: Node) -> Result:
    """Return the softmax along one axis, or, up to opset 12, over all axes from that one on."""
    x = node.computed()
    axis = node.axis(int(node.attribute("axis", 1 if node.opset < 13 else -1)), x.shape)
    stored = node.stored_axis(axis, x)
    if node.opset >= 13 or axis == len(x.shape) - 1:
        return Recipe(lambda x: torch.softmax(x, stored), (x,))
    return Recipe(lambda x: torch.softmax(x.flatten(stored), -1).reshape(x.shape), (x,))


def same(node: Node) -> Result:
    """Return the input itself."""
    return node.computed()


def dropout(node: Node) -> Result:
    """Return the input: dropout does nothing outside training."""
    node.attribute("ratio")
    node.attribute("seed")
    training = node.constant(2)
    if training is not None and bool(np.any(training)):
        raise node.refuse("it is in training mode", "Export the model after model.eval().")
    return node.computed()


def cast(node: Node) -> Result:
    """Return the input for a cast between float32 and float64: which of the two it computes in is the caller's choice."""
    node.attribute("saturate")
    node.attribute("round_mode")
    if node.attribute("to") not in (1, 11):
        raise node.refuse("it casts computed values to something other than float32 or float64")
    return node.computed()
