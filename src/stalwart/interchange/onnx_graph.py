"""What the operators of an ONNX graph are turned into: values with a batch axis, and recipes that compute them.

An ONNX file describes the network for one sample. Every computed value is therefore a batch of ONNX tensors, stored with
the batch first. Where the ONNX tensor has two axes or more and the first has length 1, that axis is taken for the batch
and not stored twice; this is how nearly every file is written:

    ONNX [1, 3, 32, 32] -> [B, 3, 32, 32]      ONNX [1, 5] -> [B, 5]      ONNX [5] -> [B, 5]      ONNX [2, 5] -> [B, 2, 5]

So samples never meet, whatever the graph does, and each row is what the file computes for that sample.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stalwart.core.errors import InputError

Shape = tuple[int, ...]


def batched(shape: Shape) -> bool:
    """Tell whether axis 0 of an ONNX shape stands for the batch (see the module's first lines)."""
    return len(shape) >= 2 and shape[0] == 1


def body_of(shape: Shape) -> Shape:
    """Return the shape of one sample as it is stored."""
    return shape[1:] if batched(shape) else shape


@dataclass(frozen=True)
class Constant:
    """A value known from the file alone."""

    array: np.ndarray

    @property
    def shape(self) -> Shape:
        """The ONNX shape."""
        return tuple(self.array.shape)


@dataclass(frozen=True)
class Computed:
    """A value that depends on the input: the tensor in ``slot``, of ONNX shape ``shape``, stored as [B, *body]."""

    slot: int
    shape: Shape

    @property
    def body(self) -> Shape:
        """The shape of one stored sample."""
        return body_of(self.shape)


Value = Constant | Computed


@dataclass(frozen=True)
class Recipe:
    """How to compute a value: ``function(*inputs, *tensors)``.

    Attributes:
        function: a plain torch function of stored tensors.
        inputs: the computed values it takes, in order.
        tensors: constants it takes after them, in order; ``weight`` and ``bias`` become parameters, others buffers.
        shape: the ONNX shape of the result; None if the result's first axis is a batch axis exactly if the first input's is.
    """

    function: Callable[..., Tensor]
    inputs: tuple[Computed, ...]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    shape: Shape | None = None


Result = Value | Recipe | Sequence[Recipe]


class Node:
    """One node of the graph, with its inputs resolved: what an operator's function sees.

    Args:
        op: the operator's name, such as "Conv".
        name: the node's name in the file, or that of its output.
        opset: the version of the operators.
        inputs: resolved inputs; None where an optional one is left out.
        outputs: the names of its outputs; "" where one is not wanted.
        attributes: plain numbers, strings, arrays or lists of them.
        recipe_of: gives the recipe of a computed value that nothing else uses, else None.
    """

    def __init__(
        self,
        op: str,
        name: str,
        opset: int,
        inputs: list[Value | None],
        outputs: list[str],
        attributes: Mapping[str, Any],
        recipe_of: Callable[[Computed], Recipe | None],
    ) -> None:
        self.op = op
        self.name = name
        self.opset = opset
        self.inputs = inputs
        self.outputs = outputs
        self.recipe_of = recipe_of
        self._attributes = attributes
        self._read: set[str] = set()

    def refuse(self, why: str, advice: str = "Export the model in another form.") -> InputError:
        """Return the error that names this node; the caller raises it."""
        return InputError(f"ONNX node '{self.name}' ({self.op}, opset {self.opset}): {why}. {advice}")

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or the default where the file leaves it out."""
        self._read.add(name)
        return self._attributes.get(name, default)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return an attribute that must be 0 or 1."""
        value = self.attribute(name, int(default))
        if value not in (0, 1):
            raise self.refuse(f"the attribute {name}={value} is neither 0 nor 1")
        return bool(value)

    def expect(self, name: str, *allowed: object) -> None:
        """Refuse an attribute that is given and has none of the allowed values."""
        value = self.attribute(name, allowed[0])
        if value not in allowed:
            raise self.refuse(f"the attribute {name}={value} is not supported")

    def check_attributes(self) -> None:
        """Refuse attributes that no function has looked at: they would silently change the meaning."""
        unknown = sorted(set(self._attributes) - self._read)
        if unknown:
            raise self.refuse(f"the attribute '{unknown[0]}' is not supported")

    def at(self, index: int) -> Value | None:
        """Return an optional input."""
        return self.inputs[index] if index < len(self.inputs) else None

    def computed(self, index: int = 0) -> Computed:
        """Return an input that must depend on the network's input."""
        value = self.at(index)
        if not isinstance(value, Computed):
            raise self.refuse(
                f"input {index} is {'missing' if value is None else 'a constant'}, which is not supported"
            )
        return value

    def constant(self, index: int) -> np.ndarray | None:
        """Return an optional input that must be constant."""
        value = self.at(index)
        if isinstance(value, Computed):
            raise self.refuse(
                f"input {index} depends on the network's input, which is not supported",
                "Export the model with static shapes and constant weights.",
            )
        return None if value is None else value.array

    def weight(self, index: int) -> Tensor:
        """Return a constant float input as a float32 tensor."""
        array = self.constant(index)
        if array is None:
            raise self.refuse(f"input {index} is missing")
        return self.tensor(array)

    def tensor(self, array: np.ndarray) -> Tensor:
        """Return float constants as a float32 tensor of the same numbers."""
        if array.dtype.kind != "f":
            raise self.refuse(f"a constant of type {array.dtype} meets float values", "Insert a Cast to float32.")
        with np.errstate(over="ignore"):
            single = array.astype(np.float32)
        if not np.array_equal(single.astype(array.dtype), array):
            raise self.refuse(
                "it computes in float64, with constants that float32 cannot hold", "Export it in float32."
            )
        return torch.from_numpy(np.ascontiguousarray(single).reshape(array.shape))

    def ints(self, name: str | None, index: int | None = None) -> list[int] | None:
        """Return a list of integers from an attribute or, as newer opsets have it, from the constant input ``index``."""
        found = None if name is None else self.attribute(name)
        if found is None and index is not None:
            found = self.constant(index)
        return None if found is None else [int(value) for value in np.ravel(found)]

    def axis(self, axis: int, shape: Shape) -> int:
        """Return the non-negative ONNX axis; refuse one that does not exist."""
        if not -len(shape) <= axis < len(shape):
            raise self.refuse(f"axis {axis} does not exist in a tensor of shape {list(shape)}")
        return axis % len(shape)

    def stored_axis(self, axis: int, value: Computed) -> int:
        """Return the axis of the stored tensor that an ONNX axis is.

        Raises:
            InputError: it is the batch axis, which only one sample ever meets.
        """
        axis = self.axis(axis, value.shape)
        if not batched(value.shape):
            return axis + 1
        if axis == 0:
            raise self.refuse(
                f"it works along axis 0 of a tensor of shape {list(value.shape)}, which is the batch axis",
                "Let the model treat samples one by one and keep axis 0.",
            )
        return axis
