"""What a compiled loop does with its words: take its share of the axis, and see addresses as arrays. Needs numba."""

from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from stalwart.core.jit import helper


@intrinsic
def _enter(context: Any, words: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", arguments[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(words), generate


@intrinsic
def _float32_at(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(address), generate


@intrinsic
def _float64_at(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.DoubleType().as_pointer())

    return types.CPointer(types.float64)(address), generate


@intrinsic
def _int64_at(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())

    return types.CPointer(types.int64)(address), generate


@intrinsic
def _uint8_at(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.CPointer(types.uint8)(address), generate


@helper
def my_share(words: Any) -> Any:
    """Return the beginning and the end of this thread's part of the axis."""
    threads, length = words[1], words[2]
    number: Any = _enter(words)  # type: ignore[call-arg]
    return length * number // threads, length * (number + 1) // threads


@helper
def float32(address: Any, shape: Any) -> Any:
    """See an address as an array of 32-bit floats."""
    return carray(_float32_at(address), shape)  # type: ignore[call-arg]


@helper
def uint8(address: Any, shape: Any) -> Any:
    """See an address as an array of bytes."""
    return carray(_uint8_at(address), shape)  # type: ignore[call-arg]


@helper
def float64(address: Any, shape: Any) -> Any:
    """See an address as an array of 64-bit floats."""
    return carray(_float64_at(address), shape)  # type: ignore[call-arg]


@helper
def int64(address: Any, shape: Any) -> Any:
    """See an address as an array of 64-bit integers."""
    return carray(_int64_at(address), shape)  # type: ignore[call-arg]
