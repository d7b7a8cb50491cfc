"""Where parameters may range over intervals: which operators take them, and what moves them before their use."""

from collections.abc import Callable, Mapping
from typing import Any

from stalwart.bounds.interval import Interval
from stalwart.core.errors import InputError
from stalwart.graph import Graph, Node
from stalwart.graph.graph import evaluate

_TAKEN: dict[str, tuple[int | str, ...]] = {
    **dict.fromkeys(("linear", "batch_norm"), (1, 2)),
    **{f"{name}{axes}d": (1, 2, "bias") for name in ("conv", "conv_transpose") for axes in (1, 2, 3)},
    **dict.fromkeys(("mul", "matmul", "mm", "bmm", "add", "sub", "rsub"), (0, 1)),
    **dict.fromkeys(("cat", "stack"), (0,)),
    **dict.fromkeys(("div", "prelu", "stalwart::param_ramp"), (1,)),
}
"""By operator, the arguments that its rule takes as an interval."""

_MOVES = frozenset(
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
    | {"expand", "repeat", "select", "slice", "narrow", "flip", "clone", "alias", "contiguous", "detach", "to", "cat"}
    | {"stack", "add", "relu", "clamp", "clamp_min", "clamp_max", "where"}
)
"""Operators on parameters alone that rise in each of them, so that ends go to ends."""

_ADVICE = "leave that parameter out of the weights that vary"


def moved(node: Node, value_of: Callable[[Node], Any], sources: Mapping[str, str]) -> Interval:
    """Return the interval of an operator on parameters of which some are intervals.

    Raises:
        InputError: the operator does more than move or add them; the message names it and the parameter.
    """
    if node.op not in _MOVES or node.kwargs.get("alpha", 1) < 0:
        changed = next(one for one in node.parents if isinstance(value_of(one), Interval))
        raise InputError(
            f"{node.where} computes with {_called(changed, sources)} before the network's input meets it, which takes no "
            f"interval; {_ADVICE}."
        )

    def end(side: str) -> Any:
        def read(one: Node) -> Any:
            value = value_of(one)
            return getattr(value, side) if isinstance(value, Interval) else value

        return evaluate(node, read)

    return Interval(end("lower"), end("upper"))


def check_uses(graph: Graph, fixed: Mapping[Node, Any]) -> None:
    """Refuse operators that get an interval of weights and have no rule for it.

    Raises:
        InputError: the message names the operator, its module and the parameter.
    """
    for node in graph.nodes:
        if not node.batched:
            continue
        places = _TAKEN.get(node.op, ())
        for place, argument in [*enumerate(node.args), *node.kwargs.items()]:
            for one in argument if isinstance(argument, list | tuple) else [argument]:
                if isinstance(one, Node) and isinstance(fixed.get(one), Interval) and place not in places:
                    raise InputError(
                        f"{node.where} takes no interval for {_called(one, graph.sources)}; {_ADVICE}, or rewrite the "
                        f"operator. Intervals go with {', '.join(_TAKEN)}."
                    )


def _called(node: Node, sources: Mapping[str, str]) -> str:
    name = sources.get(node.name)
    return "a value made of parameters" if name is None else f"the parameter '{name}'"
