"""Which constants that a network computes from its parameters are exact, for rigorous bounds."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stalwart.core.errors import UsageError
from stalwart.graph import Graph, Node

_EXACT = frozenset(
    {
        "view",
        "_unsafe_view",
        "reshape",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "permute",
        "transpose",
        "movedim",
    }
    | {"expand", "repeat", "select", "slice", "narrow", "flip", "roll", "index", "index_select", "cat", "stack"}
    | {"clone", "alias", "contiguous", "detach", "to", "lift_fresh_copy", "tril", "triu", "diag", "diagonal"}
    | {"zeros", "ones", "full", "empty", "eye", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like"}
    | {"full_like", "where", "relu", "clamp", "clamp_min", "clamp_max", "maximum", "minimum", "amax", "amin"}
    | {"abs", "neg", "sign"}
)
"""Operators that choose, move, compare or negate numbers and round none."""


def check_constants(graph: Graph, fixed: Mapping[Node, Any]) -> None:
    """Refuse constants whose computation rounded: nothing bounds by how much.

    Sums are exact where their rounding error, itself a float, is 0 (Knuth, The Art of Computer Programming, volume 2,
    section 4.2.2), products where both factors fit in half of a float64.

    Raises:
        UsageError: the message names the operator and its module.
    """
    for node in graph.nodes:
        value = fixed.get(node)
        computed = not node.batched and node.op not in ("input", "parameter") and node.op not in _EXACT
        if computed and not (isinstance(value, Tensor) and not value.is_floating_point()) and not _exact(node, fixed):
            raise UsageError(
                f"rigor='rigorous' does not cover constants computed from parameters, as by {node.where}; store the result "
                "as a parameter (torch.nn.utils.parametrize.remove_parametrizations does for weight norm and its like), or "
                "use rigor='float64'."
            )


def _exact(node: Node, fixed: Mapping[Node, Any]) -> bool:
    if node.op not in ("add", "sub", "rsub", "mul") or node.kwargs.get("alpha", 1) != 1 or len(node.args) != 2:
        return False
    values = (fixed[one] if isinstance(one, Node) else one for one in node.args)
    a, b = (torch.as_tensor(one, dtype=torch.float64) for one in values)
    if node.op == "mul":
        out = a * b
        tiny = (out.abs() < 1e-290) & (a != 0) & (b != 0)
        return all(bool((one.float().double() == one).all()) for one in (a, b)) and not bool(tiny.any())
    if node.op != "add":
        a, b = (a, -b) if node.op == "sub" else (-a, b)
    total = a + b
    part = total - a
    return bool(((a - (total - part)) + (b - part) == 0).all())
