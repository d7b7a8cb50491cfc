"""Checks that a traced graph treats the samples of a batch one by one, whatever their number."""

from collections.abc import Set

import torch
from torch import Tensor, nn

from stalwart.core.errors import InputError
from stalwart.core.random import generator
from stalwart.graph.graph import Graph, Node, evaluate

_ROWS = 7
_ADVICE = "bounds need every sample's output to depend on that sample only; take the batch axis out of the operator."


def require_size_free(graph: Graph, other: Graph) -> None:
    """Raise InputError unless two graphs of one module, traced with batches of different sizes, are the same."""
    lines, others = graph.describe(), other.describe()
    for node, line, twin in zip(graph.nodes, lines, others, strict=False):
        if line != twin:
            raise InputError(f"{node.where} depends on the size of the batch; {_ADVICE}")
    if lines != others:
        raise InputError(f"the model's operators depend on the size of the batch; {_ADVICE}")


def require_separate(graph: Graph, model: nn.Module, repeated: Set[Node] = frozenset()) -> None:
    """Raise InputError unless each operator gives a sample among others what it gives that sample alone.

    Each operator is run on random values of its own, so that none before it can hide what it does. So are those that do not
    depend on the input but on ``repeated`` rows, one a sample: of them the graph keeps one row.
    """
    source = generator(0, "samples")
    parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    devices = {tensor.device for tensor in parameters.values() if tensor.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
        fixed = graph.fixed(model)
        like = next((one for one in fixed.values() if isinstance(one, Tensor) and one.is_floating_point()), None)
        dtype = torch.get_default_dtype() if like is None else like.dtype
        device = "cpu" if like is None else like.device
        values: dict[Node, Tensor] = {}
        for node in graph.nodes:
            if not node.batched and node not in repeated:
                continue
            if node is graph.input:
                out = torch.zeros(_ROWS, *node.shape, dtype=dtype, device=device)
            elif not any(parent in values for parent in node.parents):
                out = fixed[node].expand(_ROWS, *fixed[node].shape[1:])
            else:
                out = _separate(node, fixed, values)
            if out.is_floating_point():
                out = torch.randn(out.shape, generator=source).to(out)
            values[node] = out


def _separate(node: Node, fixed: dict[Node, Tensor], values: dict[Node, Tensor]) -> Tensor:
    def alone(row: int) -> Tensor:
        return _first(evaluate(node, lambda one: values[one][row : row + 1] if one in values else fixed[one]))

    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        raise InputError(f"{node.where} draws random numbers; bounds need a model that draws none.")
    try:
        out = _first(evaluate(node, lambda one: values[one] if one in values else fixed[one]))
        single = torch.cat([alone(row) for row in range(_ROWS)])
    except (RuntimeError, IndexError, ValueError) as problem:
        raise InputError(f"{node.where} takes a batch of one size only ({problem}); {_ADVICE}") from problem
    if out.shape != single.shape or not torch.allclose(out.double(), single.double(), 1e-3, 1e-4, equal_nan=True):
        raise InputError(f"{node.where} mixes the samples of a batch; {_ADVICE}")
    return out


def _first(value: Tensor | tuple[Tensor, ...]) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]
