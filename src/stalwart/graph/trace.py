"""Trace a module by ``torch.export`` into a :class:`Graph`, kept for as long as the module's structure stays."""

import operator
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.core.errors import InputError
from stalwart.graph.export import alike, decomposed, programs_of
from stalwart.graph.graph import Graph, Node
from stalwart.graph.key import structure
from stalwart.graph.samples import require_separate, require_size_free

_KEPT = 8
"""Graphs kept for one module; the oldest goes first."""

_CACHE: weakref.WeakKeyDictionary[nn.Module, dict[Any, Graph]] = weakref.WeakKeyDictionary()
_RESHAPES = {"view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_copy"}
_PIECES = {"split", "split_with_sizes", "chunk", "unbind", "tensor_split"}
_SIZED = {"expand", "repeat", "broadcast_to"}
_MAKERS = {"zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full"}
_ALIASES = {"t": "transpose", "_to_copy": "to", "convolution": "convolution"}


def trace(model: nn.Module, x: Tensor) -> Graph:
    """Return the graph of ``model`` in evaluation mode for inputs like x [B, ...]; traced once per structure and shape.

    A module with attributes that :func:`stalwart.graph.key.structure` has no key for is traced anew each time.

    Raises:
        InputError: torch.export cannot trace the module, it has more than one output, or it mixes samples of a batch.
    """
    known = structure(model)
    if known is None:
        return _checked(model, x)
    kept = _CACHE.setdefault(model, {})
    key = (known, tuple(x.shape[1:]), x.dtype, x.device)
    if key not in kept:
        graph = _checked(model, x)
        # Attributes that tracing itself set, such as a count of calls, belong to the next call's key.
        if structure(model) == known:
            while len(kept) >= _KEPT:
                del kept[next(iter(kept))]
            kept[key] = graph
        return graph
    return kept[key]


def _checked(model: nn.Module, x: Tensor) -> Graph:
    programs, batches = programs_of(model, x)
    reader = _Reader(decomposed(programs[0]), batches[0])
    graph = reader.graph()
    if not alike(*programs):
        require_size_free(graph, _Reader(decomposed(programs[1]), batches[1]).graph())
    require_separate(graph, model, reader.repeated)
    return graph


class _Reader:
    """Turns an exported program into nodes that do not know the size of the batch they were traced with."""

    def __init__(self, program: torch.export.ExportedProgram, batch: int) -> None:
        self.program = program
        self.batch = batch
        self.made: dict[str, Node] = {}
        self.pieces: dict[str, tuple[Node, list[tuple[int, int, int | None]]]] = {}
        self.nodes: list[Node] = []
        self.repeated: set[Node] = set()
        """Nodes that do not depend on the input and hold the same row for every sample; their value has one row."""
        self.constants: dict[str, Tensor] = {}
        self.sources: dict[str, str] = {}

    def graph(self) -> Graph:
        signature = self.program.graph_signature
        if len(signature.user_inputs) != 1 or len(signature.user_outputs) != 1:
            raise InputError("the model must take one tensor [B, ...] and return one.")
        lifted = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = getattr(signature, "inputs_to_lifted_tensor_constants", {})
        entry = None
        for raw in self.program.graph.nodes:
            if raw.op == "placeholder":
                if raw.name in lifted:
                    self.sources[raw.name] = lifted[raw.name]
                elif raw.name in constants:
                    self.constants[raw.name] = self.program.constants[constants[raw.name]]
                else:
                    entry = self._keep(raw, "input", None, (), {}, batched=True)
                    continue
                self._keep(raw, "parameter", None, (), {}, batched=False)
            elif raw.op == "call_function":
                self._operator(raw)
        if entry is None:
            raise InputError("the model does not use its input.")
        last = self.made[signature.user_outputs[0]]
        used = {entry, *_closure(last)}
        nodes = tuple(node for node in self.nodes if node in used)
        return Graph(nodes, entry, last, self.constants, self.sources)

    def _operator(self, raw: Any) -> None:
        args = tuple(self._argument(one) for one in raw.args)
        kwargs = {key: self._argument(one) for key, one in raw.kwargs.items()}
        if raw.target is operator.getitem:
            self._piece(raw, args)
            return
        name = _ALIASES.get(_name_of(raw.target), _name_of(raw.target))
        batched = any(node.batched for node in _flat((*args, *kwargs.values())))
        path = _path(raw)
        if name in _PIECES and isinstance(raw.args[0], torch.fx.Node):
            self._split(raw, name, args)
            return
        if not batched and self._repeats(raw, name, args, kwargs, path):
            return
        if batched:
            shape = self._shape(raw)
            if name == "_native_batch_norm_legit_no_training":
                self._keep(raw, "batch_norm", torch.ops.aten.batch_norm.default, _batch_norm(args), {}, True)
                return
            if shape is None or shape[0] != self.batch:
                raise InputError(
                    f"'{name}' in module '{path}' moves or merges the batch axis (its result has shape {shape}); bounds need "
                    "axis 0 to be the batch everywhere."
                )
            if name in _RESHAPES:
                self._keep(raw, "reshape", _reshape, (args[0], shape[1:]), {}, True)
                return
            if name in {"transpose", "permute", "movedim"}:
                self._keep(raw, "permute", torch.permute, (args[0], self._permutation(raw, name, args)), {}, True)
                return
            if name == "expand":
                self._keep(raw, "expand", _expand, (args[0], shape[1:]), {}, True)
                return
            if name == "div" and _depends(args[1]):
                under = self._extra(raw, "reciprocal", torch.reciprocal, (args[1],), args[1].shape)
                self._keep(raw, "mul", torch.mul, (args[0], under), {}, True)
                return
            if name in {"matmul", "mm", "bmm"} and _depends(args[0]) and _depends(args[1]):
                self._product(raw, args)
                return
            if name in _JOINS:
                self._keep(raw, name, _JOINS[name], args, kwargs, True)
                return
        self._keep(raw, name, raw.target, args, kwargs, batched)

    def _repeats(self, raw: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], path: str) -> bool:
        """Keep what repeats a row for every sample, or computes with such, and tell whether this is it.

        A state made for the traced batch, or a parameter expanded to it, fits every batch when it has one row.
        """
        shape = self._shape(raw)
        sizes = 1 if name.startswith("new_") or name in _SIZED else 0
        if name in _MAKERS | _SIZED and _first(args, sizes) == self.batch:
            one = (*args[:sizes], [1, *args[sizes][1:]], *args[sizes + 1 :])
            self.repeated.add(self._keep(raw, name, raw.target, one, kwargs, False))
            return True
        if not self.repeated.intersection(_flat((*args, *kwargs.values()))):
            return False
        if shape is None or not shape or shape[0] != self.batch:
            raise InputError(
                f"'{name}' in module '{path}' moves or merges the batch axis (its result has shape {shape}); bounds need "
                "axis 0 to be the batch everywhere."
            )
        if name in _RESHAPES or name == "expand":
            target, rest = (_expand if name == "expand" else _reshape), (args[0], shape[1:])
            self.repeated.add(self._keep(raw, name, target, rest, {}, False))
        else:
            self.repeated.add(self._keep(raw, name, raw.target, args, kwargs, False))
        return True

    def _product(self, raw: Any, args: tuple[Any, ...]) -> None:
        """Write a product of two matrices that both depend on the input as products of entries and sums."""
        a, b = args
        if len(a.shape) < 2 or len(b.shape) < 2:
            raise InputError(
                f"'matmul' in module '{_path(raw)}' multiplies {list(a.shape)} by {list(b.shape)}; bounds need matrices."
            )
        rows, columns = (*a.shape, 1), (*b.shape[:-2], 1, *b.shape[-2:])
        left = self._extra(raw, "reshape", _reshape, (a, rows), rows)
        right = self._extra(raw, "reshape", _reshape, (b, columns), columns)
        sides = tuple(torch.broadcast_shapes(rows, columns))
        entries = self._extra(raw, "mul", torch.mul, (left, right), sides)
        self._keep(raw, "sum", torch.sum, (entries, [-2]), {}, True)

    def _extra(self, raw: Any, op: str, target: Any, args: tuple[Any, ...], shape: tuple[int, ...]) -> Node:
        node = Node(f"{raw.name}_{op}_{len(self.nodes)}", op, target, args, {}, tuple(shape), True, _path(raw))
        self.nodes.append(node)
        return node

    def _piece(self, raw: Any, args: tuple[Any, ...]) -> None:
        source, index = raw.args
        if source.name in self.pieces:
            base, cuts = self.pieces[source.name]
            axis, begin, length = cuts[index]
            if length is None:
                self._keep(raw, "select", torch.select, (base, axis, begin), {}, base.batched)
            else:
                self._keep(raw, "narrow", torch.narrow, (base, axis, begin, length), {}, base.batched)
        elif index == 0:
            self.made[raw.name] = self.made[source.name]
        else:
            raise InputError(
                f"the second result of {self.made[source.name].where} is used; bounds take its first only."
            )

    def _split(self, raw: Any, name: str, args: tuple[Any, ...]) -> None:
        base = args[0]
        given = dict(zip(("self", "size", "dim"), args, strict=False))
        axis = int(raw.kwargs.get("dim", given.get("dim", 0)))
        if name == "unbind":
            axis = int(raw.kwargs.get("dim", args[1] if len(args) > 1 else 0))
        outs = raw.meta["val"]
        axis = axis % (outs[0].dim() + (name == "unbind"))
        if base.batched and axis == 0:
            raise InputError(f"'{name}' in module '{_path(raw)}' splits the batch axis; bounds need it whole.")
        cuts: list[tuple[int, int, int | None]] = []
        begin = 0
        for number, out in enumerate(outs):
            if name == "unbind":
                cuts.append((axis, number, None))
            else:
                cuts.append((axis, begin, int(out.shape[axis])))
                begin += int(out.shape[axis])
        self.pieces[raw.name] = (base, cuts)

    def _permutation(self, raw: Any, name: str, args: tuple[Any, ...]) -> list[int]:
        count = len(self._shape(raw) or ())
        if name == "permute":
            order = [one % count for one in args[1]]
        elif name == "transpose":
            a, b = (args[1] % count, args[2] % count) if len(args) > 1 else (0, 1)
            order = list(range(count))
            order[a], order[b] = order[b], order[a]
        else:
            order = torch.arange(count).reshape([1] * count).dim() * [0]
            probe = torch.movedim(torch.empty(list(range(2, 2 + count))), args[1], args[2])
            order = [side - 2 for side in probe.shape]
        if order[0] != 0:
            raise InputError(f"'{name}' in module '{_path(raw)}' moves the batch axis; bounds need it first.")
        return order

    def _keep(
        self, raw: Any, op: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], batched: bool
    ) -> Node:
        shape = self._shape(raw) or ()
        node = Node(
            raw.name, op, target, args, kwargs, tuple(shape[1:]) if batched else tuple(shape), batched, _path(raw)
        )
        self.made[raw.name] = node
        self.nodes.append(node)
        return node

    def _argument(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return self.made.get(value.name, value.name)
        if isinstance(value, list | tuple):
            return [self._argument(one) for one in value]
        return value

    def _shape(self, raw: Any) -> tuple[int, ...] | None:
        value = raw.meta.get("val")
        if isinstance(value, tuple | list):
            value = value[0]
        return tuple(int(side) for side in value.shape) if isinstance(value, Tensor) else None


def _reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.reshape(x.shape[0], *shape)


def _expand(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.expand(x.shape[0], *shape)


def _whole(tensors: list[Tensor]) -> list[Tensor]:
    """Return tensors to be joined, of which some have one row for every sample, with all their rows."""
    rows = max(len(one) for one in tensors)
    return [one.expand(rows, *one.shape[1:]) for one in tensors]


def _cat(tensors: list[Tensor], dim: int = 0) -> Tensor:
    return torch.cat(_whole(tensors), dim)


def _stack(tensors: list[Tensor], dim: int = 0) -> Tensor:
    return torch.stack(_whole(tensors), dim)


_JOINS = {"cat": _cat, "stack": _stack}


def _first(args: tuple[Any, ...], place: int) -> Any:
    """Return the first of an argument's numbers."""
    given = args[place] if len(args) > place else None
    return given[0] if isinstance(given, list | tuple) and given else None


def _batch_norm(args: tuple[Any, ...]) -> tuple[Any, ...]:
    x, weight, bias, mean, variance, momentum, eps = args
    return x, weight, bias, mean, variance, False, momentum, eps, False


def _name_of(target: Any) -> str:
    packet = getattr(target, "overloadpacket", None)
    if packet is None:
        return getattr(target, "__name__", str(target))
    name: str = packet.__name__
    space = target.namespace
    return name if space == "aten" else f"{space}::{name}"


def _path(raw: Any) -> str:
    stack = raw.meta.get("nn_module_stack") or {}
    return next(reversed(stack.values()))[0] if stack else ""


def _depends(value: Any) -> bool:
    return isinstance(value, Node) and value.batched


def _flat(values: Any) -> list[Node]:
    found: list[Node] = []
    for value in values:
        if isinstance(value, Node):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(_flat(value))
    return found


def _closure(node: Node) -> set[Node]:
    found: set[Node] = set()
    stack = [node]
    while stack:
        one = stack.pop()
        if one not in found:
            found.add(one)
            stack.extend(one.parents)
    return found
