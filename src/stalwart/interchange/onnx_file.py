"""ONNX files as data: parsed and checked, never executed; files that reach outside themselves are refused."""

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stalwart.core.errors import FileError, InputError, UsageError
from stalwart.interchange.files import read_limited

OPSETS = range(7, 27)
"""The versions of ONNX's operators whose meaning is implemented; onnxruntime 1.31 runs the same ones."""

_MOST_BYTES = 2**31 - 1  # protobuf's own limit
_ONNX_DOMAINS = ("", "ai.onnx")


def extra(name: str, kind: str = "onnx") -> Any:
    """Import a package that comes with one of our extras, such as ``onnxruntime`` with ``stalwart[onnx]``.

    Args:
        name: the package.
        kind: the extra, named as the format it is for.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        raise UsageError(
            f"reading and writing {kind.upper()} needs the package '{name}': pip install 'stalwart[{kind}]'."
        ) from problem


def has_extra(name: str) -> bool:
    """Tell whether ``onnx`` or ``onnxruntime`` is installed."""
    return importlib.util.find_spec(name) is not None


def load_model(path: Path | str) -> Any:
    """Read a ``.onnx`` (or ``.onnx.gz``) file as an ``onnx.ModelProto`` that holds all its tensors itself.

    Raises:
        FileError: missing, truncated, larger than 2 GiB, or not ONNX.
        InputError: tensors stored in other files, sparse tensors, functions of its own, or what ``onnx.checker`` refuses.
        UsageError: the extra ``stalwart[onnx]`` is not installed.
    """
    onnx = extra("onnx")
    content = read_limited(path, "ONNX file", _MOST_BYTES)
    # Imported by name: protobuf comes with onnx.
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    try:
        model = onnx.load_model_from_string(content)
    except decode_error as problem:
        raise FileError(f"{path} is not an ONNX file, or it is truncated ({problem}). Export it again.") from problem
    graph = model.graph
    if model.functions:
        raise InputError(
            f"{path} defines functions of its own ({model.functions[0].name}); export it with them inlined."
        )
    if graph.sparse_initializer:
        raise InputError(f"{path} holds sparse tensors; export it with dense ones.")
    external = onnx.TensorProto.EXTERNAL
    for tensor in _tensors(graph):
        if tensor.data_location == external or tensor.external_data:
            raise InputError(
                f"{path} keeps the tensor '{tensor.name}' in another file, which is never opened. Save the model as one "
                "file (onnx.save with save_as_external_data=False)."
            )
    return model


def check_model(model: Any, path: Path | str) -> None:
    """Let ``onnx.checker`` judge the model.

    Raises:
        InputError: it refuses the model; the message is its own.
    """
    checker = extra("onnx").checker
    try:
        checker.check_model(model)
    except (checker.ValidationError, ValueError, RuntimeError) as problem:
        why = " ".join(str(problem).split()).rstrip(".")
        raise InputError(f"{path} is not a valid ONNX model: {why}. Export it again.") from problem


def opset_of(model: Any, path: Path | str) -> int:
    """Return the version of ONNX's own operators that the model is written in.

    Raises:
        InputError: it names none, or one outside :data:`OPSETS`.
    """
    versions = [entry.version for entry in model.opset_import if entry.domain in _ONNX_DOMAINS]
    if len(versions) != 1 or versions[0] not in OPSETS:
        raise InputError(
            f"{path} is written in ONNX opset {versions or 'unknown'}; opsets {OPSETS[0]} to {OPSETS[-1]} are understood. "
            "Convert it with onnx.version_converter, or export it with another opset_version."
        )
    return versions[0]


def is_standard(domain: str) -> bool:
    """Tell whether a node's domain is that of ONNX's own operators."""
    return domain in _ONNX_DOMAINS


def array_of(tensor: Any, where: str) -> np.ndarray:
    """Return the numbers of a ``TensorProto`` as a new array of float32, float64, int32, int64 or bool.

    Raises:
        InputError: another type, fewer or more numbers than its shape says, or NaN.
    """
    onnx = extra("onnx")
    kinds = onnx.TensorProto
    if tensor.data_type not in (kinds.FLOAT, kinds.DOUBLE, kinds.INT32, kinds.INT64, kinds.BOOL):
        kind = dict(zip(kinds.DataType.values(), kinds.DataType.keys(), strict=True)).get(
            tensor.data_type, tensor.data_type
        )
        raise InputError(
            f"{where} has type {kind}; only float32, float64, int32, int64 and bool are "
            "understood. Export the model in float32, not quantised."
        )
    try:
        array = np.array(onnx.numpy_helper.to_array(tensor))
    except (ValueError, TypeError, RuntimeError) as problem:
        raise InputError(f"{where} does not hold what its shape says ({problem}). Export the model again.") from problem
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise InputError(f"{where} holds NaN; the model is broken. Train or export it again.")
    return array


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield every tensor stored in a graph: initializers, attributes, and those of nested graphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for nested in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _tensors(nested)
