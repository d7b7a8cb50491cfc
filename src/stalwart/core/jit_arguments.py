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


@intrinsic
def _fetch(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        where = builder.inttoptr(arguments[0], byte)
        # For reading, to stay in all caches, of data.
        builder.call(prefetch, [where, ir.Constant(number, 0), ir.Constant(number, 3), ir.Constant(number, 1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@helper
def fetch_ahead(address: Any, bytes: Any) -> None:
    """Ask for memory that is needed soon: processors foresee what comes next on a page, not the next page of a long stride."""
    for offset in range(0, bytes, 64):
        _fetch(address + offset)  # type: ignore[call-arg]


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
