"""The graph: operators in the order of their evaluation, parameters read live from the module at each use."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Node:
    """One operator.

    Attributes:
        name: unique in its graph.
        op: the operator's name, such as "conv2d"; "input" for the network's input, "parameter" for a live parameter, buffer
            or lifted constant.
        target: what computes it on tensors.
        args, kwargs: its arguments; other nodes stand for their values.
        shape: the shape of its value: of one sample for a node that depends on the input, else of the whole tensor.
        batched: whether it depends on the input, so that axis 0 of its value is the batch.
        path: the path of the module that called it, "" for the outermost.
    """

    name: str
    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shape: tuple[int, ...]
    batched: bool
    path: str

    @property
    def where(self) -> str:
        """Return the operator and its module path, for messages."""
        return f"'{self.op}' in module '{self.path}'" if self.path else f"'{self.op}' in the outermost module"

    @property
    def parents(self) -> list["Node"]:
        """Return the nodes among the arguments, in order; a node used twice appears twice."""
        return [*_nodes(self.args), *_nodes(self.kwargs.values())]


def _nodes(values: Iterable[Any]) -> Iterator[Node]:
    for value in values:
        if isinstance(value, Node):
            yield value
        elif isinstance(value, list | tuple):
            yield from _nodes(value)


@dataclass(frozen=True, eq=False)
class Graph:
    """Operators in the order of their evaluation.

    Attributes:
        nodes: all of them, the input first and parameters before their users.
        input, output: the nodes of the network's input [B, ...] and of its output [B, ...].
        constants: tensors that are part of the program and not of the module, by node name.
        sources: for each "parameter" node the name of its parameter or buffer in the module.
    """

    nodes: tuple[Node, ...]
    input: Node
    output: Node
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def fixed(
        self,
        model: nn.Module,
        dtype: torch.dtype | None = None,
        given: Mapping[str, Any] | None = None,
        moved: Callable[[Node, Callable[[Node], Any], Mapping[str, str]], Any] | None = None,
    ) -> dict[Node, Any]:
        """Evaluate everything that does not depend on the input, from the module's parameters as they are now.

        Args:
            model: the module that was traced, or one of the same structure.
            dtype: floating-point parameters are converted to it first.
            given: values to use instead of parameters and buffers, by name in the module; no tensors necessarily.
            moved: evaluates operators on such values, from the node, what gives its arguments' values, and ``sources``.
        """
        values: dict[Node, Any] = {}
        for node in self.nodes:
            if node.batched:
                continue
            if node.op == "parameter":
                name = self.sources.get(node.name)
                if name is None:
                    value = self.constants[node.name]
                elif given is not None and name in given:
                    value = given[name]
                else:
                    value = _attribute(model, name)
                if dtype is not None and isinstance(value, Tensor) and value.is_floating_point():
                    value = value.to(dtype)
                values[node] = value
            else:
                plain = moved is None or all(isinstance(values[parent], Tensor) for parent in node.parents)
                if moved is None or plain:
                    values[node] = evaluate(node, values.__getitem__, dtype)
                else:
                    values[node] = moved(node, values.__getitem__, self.sources)
        return values

    def describe(self) -> list[str]:
        """Return one line a node, in order: what it computes, and from which nodes. Names and devices are left out.

        Two graphs with the same lines compute the same function of the same input and parameters.
        """
        place = {node: number for number, node in enumerate(self.nodes)}
        lines = []
        for node in self.nodes:
            target = getattr(node.target, "__qualname__", "") if callable(node.target) else ""
            if isinstance(node.target, torch._ops.OpOverload):
                target = str(node.target)
            parts = [node.op, target, *[_text(one, place) for one in node.args]]
            parts += [f"{key}={_text(value, place)}" for key, value in sorted(node.kwargs.items())]
            if node.op == "parameter":
                constant = self.constants.get(node.name)
                parts.append(self.sources.get(node.name, "") if constant is None else _digest(constant))
            # A state made for the traced batch has its size in its shape, which its arguments no longer have.
            shape = f" -> {list(node.shape)}" if node.batched or node.op == "parameter" else ""
            lines.append(f"{' '.join(parts)}{shape}{' batched' if node.batched else ''}")
        return [*lines, f"output {_text(self.output, place)}"]

    def ancestors(self, node: Node) -> set[Node]:
        """Return the nodes that depend on the input and that ``node`` depends on, itself included."""
        found: set[Node] = set()
        stack = [node]
        while stack:
            one = stack.pop()
            if one.batched and one not in found:
                found.add(one)
                stack.extend(one.parents)
        return found


def evaluate(node: Node, value_of: Callable[[Node], Any], dtype: torch.dtype | None = None) -> Any:
    """Run one operator on the values of its arguments."""
    kwargs = {key: _filled(value, value_of) for key, value in node.kwargs.items()}
    if dtype is not None and isinstance(kwargs.get("dtype"), torch.dtype) and kwargs["dtype"].is_floating_point:
        kwargs["dtype"] = dtype
    return node.target(*[_filled(value, value_of) for value in node.args], **kwargs)


def _filled(value: Any, value_of: Callable[[Node], Any]) -> Any:
    if isinstance(value, Node):
        return value_of(value)
    if isinstance(value, list | tuple):
        return type(value)(_filled(one, value_of) for one in value)
    return value


def _text(value: Any, place: Mapping[Node, int]) -> str:
    if isinstance(value, Node):
        return f"%{place[value]}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(one, place) for one in value)}]"
    return "device" if isinstance(value, torch.device) else repr(value)


def _digest(constant: Tensor) -> str:
    content = constant.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return f"{constant.dtype}:{hashlib.sha256(content).hexdigest()}"


def _attribute(model: nn.Module, name: str) -> Tensor:
    owner, _, attribute = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), attribute)
    return found
