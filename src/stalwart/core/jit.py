"""Compiled loops for the CPU, where numba is installed (the extra ``stalwart[fast]``); plain PyTorch serves where it is not.

A loop is a C function ``loop(words)`` that torch's own OpenMP threads enter together. A second set of threads, numba's or
Python's, would wait for the cores on which torch's threads are still spinning after the operator before, and the other way
round: measured, that costs more than the loops themselves. Where torch brings no GNU OpenMP library, one thread runs the loop.

``words`` are 64-bit integers: how many threads have entered, how many there are, how long the shared axis is, and then the
arguments, tensors as addresses.
"""

import ctypes
import functools
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@functools.cache
def available() -> bool:
    """Tell whether numba can be imported."""
    return importlib.util.find_spec("numba") is not None


def reads(*tensors: Tensor) -> bool:
    """Tell whether loops over 32-bit floats are there for these tensors: such floats on the CPU, and numba."""
    return all(one.dtype == torch.float32 and one.device.type == "cpu" for one in tensors) and available()


@functools.cache
def _team() -> Any | None:
    """Return OpenMP's entry to a team of threads, from the library that torch uses."""
    for library in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        enter = ctypes.CDLL(str(library)).GOMP_parallel
        enter.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        enter.restype = None
        return enter
    return None


def run(loop: Any, length: int, *arguments: int | Tensor) -> None:
    """Run a compiled loop over ``range(length)``, shared among the threads that torch uses.

    Tensors must be contiguous, on the CPU, and of the type that the loop reads: their addresses are all it gets.
    """
    for argument in arguments:
        if isinstance(argument, Tensor) and not (argument.is_contiguous() and argument.device.type == "cpu"):
            raise ValueError("a compiled loop takes contiguous tensors on the CPU only.")
    team = _team()
    threads = 1 if team is None else max(1, min(torch.get_num_threads(), length))
    values = [a.data_ptr() if isinstance(a, Tensor) else int(a) for a in arguments]
    words = (ctypes.c_int64 * (3 + len(values)))(0, threads, length, *values)
    if team is None or threads == 1:
        loop.ctypes(words)
    else:
        team(loop.address, words, threads, 0)


def compiled(function: Callable[[Any], None]) -> Any:
    """Compile a loop, once: the machine code is kept on disk for the next process. Checks of its arguments are left out."""
    from numba import cfunc, types

    return cfunc(types.void(types.CPointer(types.int64)), cache=True)(inspect.unwrap(function))


def helper(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that loops call. Divisions by 0 give infinity or NaN: a check at each would keep vectors away."""
    from numba import njit

    return njit(cache=True, error_model="numpy")(inspect.unwrap(function))


def summing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that loops call and whose sums may be taken in any order, so that they use vector instructions."""
    from numba import njit

    return njit(cache=True, error_model="numpy", fastmath={"reassoc", "contract"})(inspect.unwrap(function))
