"""Reading an ONNX file as a PyTorch module."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stalwart.core.errors import InputError, StalwartError
from stalwart.core.registry import suggest
from stalwart.interchange.onnx_file import array_of, check_model, extra, is_standard, load_model, opset_of
from stalwart.interchange.onnx_graph import Computed, Constant, Node, Recipe, Shape, Value, batched, body_of
from stalwart.interchange.operators.constants import FOLDS, check_size
from stalwart.interchange.operators.table import OPERATORS

_PARAMETERS = ("weight", "bias")
# Any size does; a result that has it first still has its batch axis.
_PROBE_BATCH = 3
_MOST_ACTIVATIONS = 2**30


class Step(nn.Module):
    """One operator of the network with its constants: ``function(*inputs, *tensors)``, reshaped to ``body`` if need be.

    Args:
        node: the node's name in the file, for whoever prints the module.
        recipe: what to compute.
        body: the shape of one sample of the result where the function gives another one.
    """

    def __init__(self, node: str, recipe: Recipe, body: Shape | None) -> None:
        super().__init__()
        self.node = node
        self.function = recipe.function
        self.body = body
        self.tensors = tuple(recipe.tensors)
        for name, tensor in recipe.tensors.items():
            if name in _PARAMETERS:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the stored value [B, *body] of this step."""
        y = self.function(*inputs, *[getattr(self, name) for name in self.tensors])
        return y if self.body is None else y.reshape(y.shape[0], *self.body)

    def extra_repr(self) -> str:
        """Return the node's name."""
        return repr(self.node)


class OnnxNet(nn.Module):
    """A network read from an ONNX file: [B, *input_shape] -> [B, outputs]; see :func:`read_onnx`.

    Attributes:
        input_shape: the shape of one input.
        outputs: how many numbers one output has.
        opset: the version of ONNX's operators the file is written in.
        steps: the operators in order, named by type and number.
    """

    def __init__(
        self,
        steps: Mapping[str, Step],
        wiring: list[tuple[tuple[int, ...], int]],
        result: int,
        input_shape: Shape,
        outputs: int,
        opset: int,
    ) -> None:
        super().__init__()
        self.steps = nn.ModuleDict(steps)
        self.input_shape = input_shape
        self.outputs = outputs
        self.opset = opset
        self._result = result
        last = {slot: at for at, (sources, _) in enumerate(wiring) for slot in sources}
        # What each step reads, which slot it fills, and which slots nothing reads afterwards.
        self._wiring = [
            (sources, slot, tuple({s for s in sources if last[s] == at and s != result}))
            for at, (sources, slot) in enumerate(wiring)
        ]

    def forward(self, x: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch outputs"]:
        """Return the network's outputs.

        Raises:
            InputError: an input has another shape than the file says.
        """
        if tuple(x.shape[1:]) != self.input_shape:
            raise InputError(
                f"the network takes inputs of shape [B, {_listed(self.input_shape)}], got {list(x.shape)}."
            )
        values = {0: x}
        for step, (sources, slot, done) in zip(self.steps.values(), self._wiring, strict=True):
            values[slot] = step(*[values[source] for source in sources])
            for source in done:
                del values[source]
        y = values[self._result]
        return y if y.dim() == 2 else y.reshape(y.shape[0], self.outputs)


def read_onnx(path: Path | str) -> OnnxNet:
    """Read a ``.onnx`` (or ``.onnx.gz``) file as a module that maps [B, *input_shape] to [B, outputs] for any B.

    The file describes one sample; nothing in it is executed. Where the input has two axes or more and the first has
    length 1 or a symbolic one, that axis is the batch: ONNX [1, 3, 32, 32] takes [B, 3, 32, 32], and [1, 5] takes [B, 5]. An
    input of any other shape is one sample as a whole: [5] takes [B, 5]. Every row of the result is what the file computes
    for that sample alone (see ``onnx_graph.py``). The output is flattened, [1, K] or [K] to [B, K].

    Weights are the file's float32 numbers, as parameters, so the module trains, and ``.double()`` evaluates the same network
    in float64. It consists of plain torch operators, with no control flow that depends on data, for torch.export.

    Raises:
        FileError: missing, truncated or not ONNX.
        InputError: the model is invalid or reaches outside the file; it has several inputs or outputs, an input that is not
            float32, or an axis of unknown length; or a node uses an operator or attribute that is not supported, or mixes
            the batch axis with others. The message names the node.
        UsageError: the extra ``stalwart[onnx]`` is not installed.

    Example:
        >>> net = read_onnx("net.onnx")  # doctest: +SKIP
        >>> net(torch.zeros(16, *net.input_shape)).shape  # doctest: +SKIP
        torch.Size([16, 10])
    """
    model = load_model(path)
    opset = opset_of(model, path)
    for node in model.graph.node:
        _check_operator(node, opset)
    check_model(model, path)
    return _Reader(model.graph, opset, path).net()


@dataclass(frozen=True)
class _Planned:
    """A step to come: the node it stands for, its recipe, and the shape of one sample where the recipe gives another."""

    op: str
    node: str
    recipe: Recipe
    body: Shape | None


class _Reader:
    """Walks a graph once, in the file's order, which the checker has found topological."""

    def __init__(self, graph: Any, opset: int, path: Path | str) -> None:
        self.graph, self.opset, self.path = graph, opset, path
        self.planned: list[_Planned] = []  # the step at index i fills slot i + 1; slot 0 is the input
        self.samples: list[Tensor] = []  # what each slot holds, without data
        self.values: dict[str, Value] = {
            tensor.name: Constant(array_of(tensor, f"{path}: the tensor '{tensor.name}'"))
            for tensor in graph.initializer
        }
        self.uses = Counter(name for node in graph.node for name in node.input)
        self.uses.update(output.name for output in graph.output)
        self.slot_uses: Counter[int] = Counter()

    def net(self) -> OnnxNet:
        """Return the finished module."""
        # Old files list their weights among the inputs.
        inputs = [entry for entry in self.graph.input if entry.name not in self.values]
        if len(inputs) != 1 or len(self.graph.output) != 1:
            raise InputError(
                f"{self.path} has {len(inputs)} inputs and {len(self.graph.output)} outputs; a network with one of each is "
                "needed. Export it with the other ones fixed or left out."
            )
        shape = _input_shape(inputs[0], self.path)
        self.samples.append(torch.empty(_PROBE_BATCH, *body_of(shape), device="meta"))
        self._name(inputs[0].name, Computed(0, shape))
        for proto in self.graph.node:
            self._visit(proto)
        result = self.values[self.graph.output[0].name]
        if isinstance(result, Constant):
            raise InputError(f"{self.path}: the output does not depend on the input. Export the model again.")
        return self._assemble(result, body_of(shape))

    def _name(self, name: str, value: Value) -> None:
        self.values[name] = value
        if isinstance(value, Computed):
            self.slot_uses[value.slot] += self.uses[name]

    def _visit(self, proto: Any) -> None:
        inputs = [self.values[name] if name else None for name in proto.input]
        outputs = list(proto.output)
        attributes = {entry.name: _plain(entry, proto) for entry in proto.attribute}
        node = Node(proto.op_type, _label(proto), self.opset, inputs, outputs, attributes, self._recipe_of)
        try:
            results = self._results(node)
            node.check_attributes()
            if any(outputs[len(results) :]):
                raise node.refuse(f"only its first {len(results)} outputs are supported")
            for name, result in zip(outputs, results, strict=False):
                self._name(name, self._store(node, result) if isinstance(result, Recipe) else result)
        except StalwartError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, ArithmeticError) as problem:
            # What the file says does not fit together; torch and numpy say how.
            raise node.refuse(
                f"its inputs do not fit together ({problem})", "Check the model and export it again."
            ) from problem

    def _results(self, node: Node) -> Sequence[Value | Recipe]:
        """Return the node's outputs, folded if all its inputs are constant."""
        if not any(isinstance(value, Computed) for value in node.inputs):
            if node.op not in FOLDS:
                raise node.refuse(
                    "all its inputs are constant, which is not supported", "Fold constants when exporting."
                )
            arrays = [value.array for value in node.inputs if isinstance(value, Constant)]
            folded = FOLDS[node.op](node, *arrays)
            check_size(node, folded.size)
            return [Constant(folded)]
        if node.op not in OPERATORS:
            raise node.refuse("it depends on the network's input, and is supported for constants only")
        result = OPERATORS[node.op](node)
        return [result] if isinstance(result, Constant | Computed | Recipe) else result

    def _store(self, node: Node, recipe: Recipe) -> Computed:
        """Give a recipe a slot, having tried it on tensors without data."""
        tensors = [tensor.to("meta") for tensor in recipe.tensors.values()]
        sample = recipe.function(*[self.samples[source.slot] for source in recipe.inputs], *tensors)
        body = tuple(sample.shape[1:])
        shape = recipe.shape
        if shape is None:
            shape = (1, *body) if batched(recipe.inputs[0].shape) else body
        target = body_of(shape)
        if sample.shape[0] != _PROBE_BATCH or math.prod(body) != math.prod(target):
            raise node.refuse(
                f"it gives values of shape {list(sample.shape)} where the file says {list(shape)} for one sample"
            )
        if not 0 < math.prod(body) <= _MOST_ACTIVATIONS:
            raise node.refuse(f"it computes a value of shape {list(shape)}, which is empty or too large")
        self.planned.append(_Planned(node.op, node.name, recipe, None if target == body else target))
        self.samples.append(sample.reshape(_PROBE_BATCH, *target))
        return Computed(len(self.planned), shape)

    def _recipe_of(self, value: Computed) -> Recipe | None:
        """Return the recipe of a value that only one input of one node uses, else None."""
        return self.planned[value.slot - 1].recipe if value.slot and self.slot_uses[value.slot] == 1 else None

    def _assemble(self, result: Computed, input_shape: Shape) -> OnnxNet:
        """Build the module from the steps that the result needs."""
        needed = {result.slot}
        for at in reversed(range(len(self.planned))):
            if at + 1 in needed:
                needed.update(source.slot for source in self.planned[at].recipe.inputs)
        steps: dict[str, Step] = {}
        wiring = []
        for at, planned in enumerate(self.planned):
            if at + 1 in needed:
                steps[f"{planned.op}_{len(steps)}"] = Step(planned.node, planned.recipe, planned.body)
                wiring.append((tuple(source.slot for source in planned.recipe.inputs), at + 1))
        return OnnxNet(steps, wiring, result.slot, input_shape, math.prod(result.body), self.opset)


def _label(proto: Any) -> str:
    """Return a node's name, or its output's where it has none."""
    return proto.name or next(iter(proto.output), "unnamed")


def _check_operator(proto: Any, opset: int) -> None:
    known = OPERATORS.keys() | FOLDS.keys()
    if is_standard(proto.domain) and proto.op_type in known:
        return
    full = proto.op_type if is_standard(proto.domain) else f"{proto.domain}.{proto.op_type}"
    raise InputError(
        f"ONNX node '{_label(proto)}' uses the operator {full} (opset {opset}), which is not supported."
        f"{suggest(proto.op_type, known)} Export the model without it, or add a function for it to the table in "
        f"stalwart/interchange/operators/table.py. Supported: {', '.join(sorted(known))}."
    )


def _plain(entry: Any, proto: Any) -> Any:
    """Return an attribute's value as a number, a string, an array, or a list of numbers."""
    kinds = extra("onnx").AttributeProto
    match entry.type:
        case kinds.FLOAT:
            return entry.f
        case kinds.INT:
            return entry.i
        case kinds.STRING:
            return entry.s.decode(errors="replace")
        case kinds.TENSOR:
            return array_of(entry.t, f"ONNX node '{_label(proto)}' ({proto.op_type}): its attribute {entry.name}")
        case kinds.FLOATS:
            return list(entry.floats)
        case kinds.INTS:
            return list(entry.ints)
    raise InputError(
        f"ONNX node '{_label(proto)}' ({proto.op_type}): its attribute {entry.name} is no number, string or tensor, which is "
        "not supported. Export the model without it."
    )


def _input_shape(entry: Any, path: Path | str) -> Shape:
    """Return the ONNX shape of the network's input for one sample."""
    kind = entry.type.tensor_type
    if kind.elem_type != extra("onnx").TensorProto.FLOAT:
        raise InputError(f"{path}: the input '{entry.name}' is not a float32 tensor. Export the model in float32.")
    lengths = [axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim]
    if len(lengths) >= 2 and lengths[0] in (None, 0, -1):
        lengths[0] = 1  # a batch of any size
    shape = tuple(length for length in lengths if length is not None)
    if not kind.HasField("shape") or len(shape) != len(lengths) or min(shape, default=1) < 1:
        raise InputError(
            f"{path}: the input '{entry.name}' has the shape {lengths}, where only the first of several axes, the batch, may "
            "be left open. Export the model with a fixed input shape."
        )
    if math.prod(shape) > _MOST_ACTIVATIONS:
        raise InputError(f"{path}: the input '{entry.name}' of shape {list(shape)} is too large.")
    return shape


def _listed(shape: Shape) -> str:
    return ", ".join(map(str, shape))
