"""Every operator that bounds know, and the rule it follows."""

from collections.abc import Iterable

from stalwart.bounds.rules.base import Rule
from stalwart.core.errors import InputError
from stalwart.core.registry import lookup, suggest
from stalwart.graph import Graph, Node

_MOVES = (
    *("permute", "expand", "narrow", "select", "slice", "index_select", "index", "flip", "roll", "repeat"),
    *("cat", "stack", "sum", "mean", "cumsum", "constant_pad_nd", "pad"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
)
_COPIES = ("clone", "alias", "contiguous", "detach", "to", "dropout", "lift_fresh_copy", "feature_dropout")
_FUNCTION = "stalwart.bounds.rules.elementwise:Function"
_FUNCTIONS = (
    *("relu", "leaky_relu", "prelu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "abs", "sign"),
    *("sigmoid", "tanh", "gelu", "silu", "softplus", "exp", "log", "sqrt", "reciprocal", "square", "pow"),
    *("sin", "cos", "erf", "elu", "heaviside", "stalwart::param_ramp"),
    *("stalwart::fire", "stalwart::keep"),
)
_MAXIMA = ("max_pool1d", "max_pool2d", "max_pool3d", "amax")

RULES: dict[str, str] = {
    **dict.fromkeys(_MOVES, "stalwart.bounds.rules.moves:Move"),
    **dict.fromkeys(_COPIES, "stalwart.bounds.rules.moves:Same"),
    **dict.fromkeys(_FUNCTIONS, _FUNCTION),
    **dict.fromkeys(_MAXIMA, "stalwart.bounds.rules.maxima:Largest"),
    "reshape": "stalwart.bounds.rules.moves:Reshape",
    "add": "stalwart.bounds.rules.moves:Add",
    "sub": "stalwart.bounds.rules.differences:Difference",
    "rsub": "stalwart.bounds.rules.differences:Difference",
    "neg": "stalwart.bounds.rules.weighted:Negation",
    "linear": "stalwart.bounds.rules.weighted:Linear",
    "conv1d": "stalwart.bounds.rules.convolutions:Convolution",
    "conv2d": "stalwart.bounds.rules.convolutions:Convolution",
    "conv3d": "stalwart.bounds.rules.convolutions:Convolution",
    "conv_transpose1d": "stalwart.bounds.rules.convolutions:TransposedConvolution",
    "conv_transpose2d": "stalwart.bounds.rules.convolutions:TransposedConvolution",
    "conv_transpose3d": "stalwart.bounds.rules.convolutions:TransposedConvolution",
    "batch_norm": "stalwart.bounds.rules.weighted:BatchNorm",
    "div": "stalwart.bounds.rules.weighted:Quotient",
    "maximum": "stalwart.bounds.rules.pairs:Pair",
    "minimum": "stalwart.bounds.rules.pairs:Pair",
}
"""Operators by name; products are looked up by :func:`rule_of`, since their rule depends on what is fixed."""

_PRODUCTS = {
    "mul": ("stalwart.bounds.rules.weighted:Product", "stalwart.bounds.rules.pairs:Pair"),
    "matmul": ("stalwart.bounds.rules.weighted:MatMul", None),
    "mm": ("stalwart.bounds.rules.weighted:MatMul", None),
    "bmm": ("stalwart.bounds.rules.weighted:MatMul", None),
}
_MADE: dict[str, Rule] = {}


def rule_of(node: Node) -> Rule:
    """Return the rule of an operator that depends on the input.

    Raises:
        InputError: there is none; the message names the operator and the module that calls it.
    """
    name = RULES.get(node.op)
    if node.op in _PRODUCTS:
        name = _PRODUCTS[node.op][len([one for one in node.args[:2] if isinstance(one, Node) and one.batched]) - 1]
    elif node.op == "div" and isinstance(node.args[1], Node) and node.args[1].batched:
        name = None
    elif node.op == "add" and node.kwargs.get("alpha", 1) < 0:
        name = RULES["sub"]
    elif node.op in ("maximum", "minimum") and not all(isinstance(one, Node) and one.batched for one in node.args[:2]):
        name = _FUNCTION
    if name is None:
        raise InputError(f"bounds have no rule for {node.where}.{suggest(node.op, RULES)}")
    if name == _FUNCTION and len({one for one in node.parents if one.batched}) > 1:
        raise InputError(f"bounds have no rule for {node.where} with two operands that depend on the input.")
    if node.op == "pow" and not isinstance(node.args[0], Node):
        raise InputError(f"bounds have no rule for {node.where} with an exponent that depends on the input; use exp.")
    if name not in _MADE:
        _MADE[name] = lookup("rule", {name: name}, name)()
    rule = _MADE[name]
    unread = () if rule.options is None else node.kwargs.keys() - rule.options
    if unread:
        raise InputError(f"bounds do not know the option {', '.join(sorted(unread))} of {node.where}.")
    return rule


def unsupported(graph: Graph) -> list[Node]:
    """Return the operators of a graph that bounds have no rule for."""
    return [node for node in _operators(graph) if not _known(node)]


def _operators(graph: Graph) -> Iterable[Node]:
    return (node for node in graph.nodes if node.batched and node.op != "input")


def _known(node: Node) -> bool:
    try:
        rule_of(node)
    except InputError:
        return False
    return True
