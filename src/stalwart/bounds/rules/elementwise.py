"""Nonlinear functions of one operand, entry by entry: two lines enclose them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stalwart.bounds import ramps
from stalwart.bounds.elementwise import ELEMENTWISE
from stalwart.bounds.envelope import Envelope
from stalwart.bounds.interval import Interval
from stalwart.bounds.lines import Lines
from stalwart.bounds.patches import Patches, fast, is_wide
from stalwart.bounds.piecewise import is_convex_hinge
from stalwart.bounds.rules.base import Forms, Rule, View, Walk, batched_arguments, dot
from stalwart.bounds.taken import Taken
from stalwart.core import jit
from stalwart.core.errors import InputError
from stalwart.core.registry import lookup
from stalwart.graph import Node


def _per_channel(value: Any, node: Node) -> Any:
    if isinstance(value, Interval):
        return Interval(_per_channel(value.lower, node), _per_channel(value.upper, node))
    return value.reshape(-1, *[1] * (len(node.shape) - 1)) if isinstance(value, Tensor) and value.numel() > 1 else value


def _argument(node: Node, view: View, position: int, name: str, default: Any) -> Any:
    return view.fixed(node.args[position] if len(node.args) > position else node.kwargs.get(name, default))


def _other(node: Node, view: View) -> Any:
    """Return the operand that does not depend on the input."""
    (parent,) = batched_arguments(node)
    value = view.fixed(next(one for one in node.args[:2] if one is not parent))
    if node.shape != parent.shape:
        raise InputError(f"{node.where}: the fixed operand must not be larger than the other, {list(parent.shape)}.")
    return value


def _power(node: Node, view: View) -> tuple[str, dict[str, Any]]:
    exponent = view.fixed(node.args[1])
    if isinstance(exponent, Tensor):
        if exponent.numel() != 1:
            raise InputError(f"{node.where}: bounds need one exponent, got {list(exponent.shape)}.")
        exponent = float(exponent)
    if not math.isfinite(exponent):
        raise InputError(f"{node.where}: bounds need a finite exponent, got {exponent}.")
    # z and 1 are no curves, but lines with a kink that bends nothing, and a clamp that leaves one value.
    plain = {0: ("clamp", {"low": 1.0, "high": 1.0}), 1: ("leaky_relu", {"negative_slope": 1.0}), 2: ("square", {})}
    return plain.get(exponent, ("pow", {"exponent": exponent}))


def _elu(node: Node, view: View) -> tuple[str, dict[str, Any]]:
    if any(float(_argument(node, view, place, name, 1.0)) != 1 for place, name in ((2, "scale"), (3, "input_scale"))):
        raise InputError(f"{node.where}: scaled ELU (SELU, CELU) is not supported; write the scales as products.")
    return "elu", {"alpha": float(_argument(node, view, 1, "alpha", 1.0))}


def _heaviside(node: Node, view: View) -> tuple[str, dict[str, Any]]:
    if not bool((_argument(node, view, 1, "values", None) == 1).all()):
        raise InputError(f"{node.where}: only a step that is 1 at 0 is supported.")
    return "heaviside", {}


def _length(node: Node, view: View) -> Any:
    length = view.fixed(node.args[1])
    if isinstance(length, Interval) and bool((length.lower < 0).any()):
        raise InputError(f"{node.where}: the length of a ramp ranges below 0; let it vary less.")
    return length


_BUILDERS: dict[str, Callable[[Node, View], tuple[str, dict[str, Any]]]] = {
    "leaky_relu": lambda n, v: ("leaky_relu", {"negative_slope": float(_argument(n, v, 1, "negative_slope", 0.01))}),
    "prelu": lambda n, v: ("prelu", {"weight": _per_channel(_argument(n, v, 1, "weight", None), n)}),
    "hardtanh": lambda n, v: (
        "hardtanh",
        {"low": float(_argument(n, v, 1, "min_val", -1.0)), "high": float(_argument(n, v, 2, "max_val", 1.0))},
    ),
    "clamp": lambda n, v: (
        "clamp",
        {"low": _argument(n, v, 1, "min", None), "high": _argument(n, v, 2, "max", None)},
    ),
    "clamp_min": lambda n, v: ("clamp", {"low": _argument(n, v, 1, "min", None), "high": None}),
    "clamp_max": lambda n, v: ("clamp", {"low": None, "high": _argument(n, v, 1, "max", None)}),
    "gelu": lambda n, v: ("gelu", {"approximate": _argument(n, v, 1, "approximate", "none")}),
    "softplus": lambda n, v: (
        "softplus",
        {"beta": float(_argument(n, v, 1, "beta", 1.0)), "threshold": float(_argument(n, v, 2, "threshold", 20.0))},
    ),
    "maximum": lambda n, v: ("clamp", {"low": _other(n, v), "high": None}),
    "minimum": lambda n, v: ("clamp", {"low": None, "high": _other(n, v)}),
    "pow": _power,
    "elu": _elu,
    "heaviside": _heaviside,
    "stalwart::fire": lambda n, v: ("fire", {"threshold": v.fixed(n.args[1]), "strict": n.args[2]}),
    "stalwart::keep": lambda n, v: (
        "keep",
        {"threshold": v.fixed(n.args[1]), "hard": n.args[2], "strict": n.args[3]},
    ),
    "stalwart::param_ramp": lambda n, v: ("param_ramp", {"r": _length(n, v), "eta": v.fixed(n.args[2])}),
}


def function_of(node: Node, view: View) -> Any:
    """Return the function that an elementwise node computes, with its parameters as they are now."""
    name, options = _BUILDERS[node.op](node, view) if node.op in _BUILDERS else (node.op, {})
    maker = lookup("elementwise function", ELEMENTWISE, name)
    spread = [key for key, value in options.items() if isinstance(value, Interval)]
    if not spread:
        return maker(**options)
    # The two parameters that may vary, a PReLU's slope and a ramp's length, move every value one way.
    ends = [maker(**{**options, spread[0]: end}) for end in (options[spread[0]].lower, options[spread[0]].upper)]
    return Envelope(*(reversed(ends) if name == "prelu" else ends))


class Function(Rule):
    """y_i = σ(x_i)."""

    relaxed = True
    options = frozenset(
        {"negative_slope", "weight", "min", "max", "min_val", "max_val", "approximate", "beta", "threshold", "alpha"}
        | {"scale", "input_scale", "values"}
    )

    def interval(self, node: Node, view: View) -> Interval:
        """Return the function's own interval."""
        (parent,) = batched_arguments(node)
        x, function = view.interval(parent), function_of(node, view)
        ramp = ramps.passed(function, x)
        if ramp is not None:
            return ramp
        try:
            return Interval(*function.interval(x.lower, x.upper))
        except InputError as problem:
            raise InputError(f"{node.where}: {problem}") from problem

    def backward(self, node: Node, coefficients: Tensor, walk: Walk) -> None:
        """A⁺ takes the lower line, A⁻ the upper (Zhang et al., 2018, arXiv 1811.00866)."""
        (parent,) = batched_arguments(node)
        if self._passed_own(node, coefficients, walk):
            return
        lines = walk.view.lines(node)
        if lines.lower_slope.dim() == coefficients.dim() - 1 and fast(
            coefficients, lines.lower_slope, lines.upper_slope
        ):
            walk.send(parent, _in_one_pass(coefficients, self._passing(node, walk), walk))
            return
        above, below = coefficients.clamp_min(0), coefficients.clamp_max(0)
        walk.send(parent, above * _rows(lines.lower_slope, above) + below * _rows(lines.upper_slope, below))
        walk.add(_dot_rows(above, lines.lower_intercept) + _dot_rows(below, lines.upper_intercept))

    def patched(self, node: Node, patches: Patches, walk: Walk) -> bool:
        """Do the same inside each window."""
        (parent,) = batched_arguments(node)
        if self._passed_own(node, patches, walk):
            return True
        lines = walk.view.channels_last(node)
        if lines.lower_slope.dim() != 4 or not fast(patches.coefficients, lines.lower_slope, lines.upper_slope):
            return False
        walk.send(parent, patches.relax(self._passing(node, walk, last=True), walk.running(patches.coefficients)))
        return True

    def taken(self, node: Node, taken: Taken, walk: Walk) -> bool:
        """Do the same while rows are copied."""
        (parent,) = batched_arguments(node)
        if walk.view.alone(node):
            return False
        lines = walk.view.lines(node)
        if lines.lower_slope.dim() != 2 or not fast(taken.matrix, taken.signs, lines.lower_slope, lines.upper_slope):
            return False
        out = walk.room(node, taken.matrix, *taken.places.shape, taken.matrix.shape[1])
        taken.relax(self._passing(node, walk), walk.running(taken.places), out)
        walk.send(parent, out)
        return True

    def _passing(self, node: Node, walk: Walk, last: bool = False) -> Lines:
        lines, counted = walk.view.passing(node, last)
        if counted:
            walk.counted.update(batched_arguments(node))
        return lines

    def _passed_own(self, node: Node, coefficients: Tensor | Patches, walk: Walk) -> bool:
        """Let each row take lines of its own, if it has any."""
        own = walk.view.passed(node, coefficients)
        if own is None:
            return False
        (parent,) = batched_arguments(node)
        walk.send(parent, own[0])
        walk.add(own[1])
        return True

    def forward(self, node: Node, forms: Callable[[Node], Forms], view: View) -> Forms:
        """Compose each line with the side of x that its slope's sign asks for."""
        (parent,) = batched_arguments(node)
        x, lines = forms(parent), view.lines(node)

        def composed(slope: Tensor, intercept: Tensor, same: str, other: str) -> tuple[Tensor, Tensor]:
            up, down = slope.clamp_min(0), slope.clamp_max(0)
            return (
                getattr(x, f"{same}_slope") * up.unsqueeze(1) + getattr(x, f"{other}_slope") * down.unsqueeze(1),
                getattr(x, same) * up + getattr(x, other) * down + intercept,
            )

        return Forms(
            *composed(lines.lower_slope, lines.lower_intercept, "lower", "upper"),
            *composed(lines.upper_slope, lines.upper_intercept, "upper", "lower"),
        )


def _in_one_pass(coefficients: Tensor, lines: Lines, walk: Walk) -> Tensor:
    from stalwart.bounds import kernels

    batch, rows = coefficients.shape[:2]
    a = coefficients.contiguous()
    sizes = (is_wide(a), rows, batch, a[0, 0].numel())
    jit.run(kernels.relax, batch * rows, *sizes, a, *(one.contiguous() for one in lines.parts), walk.running(a))
    return a


def _rows(slope: Tensor, coefficients: Tensor) -> Tensor:
    """Slopes are [B, ...], or [S, B, ...] where every row has its own; coefficients are [B, S, ...]."""
    return slope.unsqueeze(1) if slope.dim() == coefficients.dim() - 1 else slope.transpose(0, 1)


def _dot_rows(coefficients: Tensor, intercept: Tensor) -> Tensor:
    if intercept.dim() == coefficients.dim() - 1:
        return dot(coefficients, intercept)
    return (coefficients * intercept.transpose(0, 1)).flatten(2).sum(2)


def lines_of(
    node: Node, view: View, outward: bool = False, walked: Interval | None = None, inner: bool = False
) -> Lines:
    """Return the lines of an elementwise node on the known interval of its operand.

    Args:
        node: the operator.
        view: where intervals and parameters come from.
        outward: whether to make room for rounding.
        walked: the interval that a backward walk alone found for the operand. "adaptive" lower lines of a convex hinge are
            chosen by it, because an interval that came from elsewhere says little about the linear bounds that replace the
            operand.
        inner: whether the lines are for the walks of intermediate layers, where the other lines follow ``walked`` too.
    """
    (parent,) = batched_arguments(node)
    x, function = view.interval(parent), function_of(node, view)
    found: Lines
    if walked is None or view.strategy != "adaptive" or not is_convex_hinge(function):
        found = function.lines(x.lower, x.upper, view.strategy)
    else:
        found = function.lines(walked.lower, walked.upper, "adaptive")
        if inner:
            x = walked
        else:
            found = function.lines_with_slope(x.lower, x.upper, found.lower_slope)
    if outward:
        found = function.outward(found, x.lower, x.upper)
    return found


def settled(node: Node, view: View) -> Tensor:
    """Return where a better interval of the operand cannot help, because the function is one line there: [B, ...] bool."""
    (parent,) = batched_arguments(node)
    x = view.interval(parent)
    found: Tensor = function_of(node, view).linear_on(x.lower, x.upper)
    return found


def is_finite(lines: Lines) -> Tensor:
    """Return whether all slopes and intercepts are finite."""
    return torch.stack([torch.isfinite(part).all() for part in lines.parts]).all()
