"""Export a module for two sizes of the batch, so that what depends on its size shows."""

import itertools
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.core.errors import InputError
from stalwart.core.modes import evaluating, stepwise
from stalwart.graph.decompose import DECOMPOSITIONS

_BATCHES = (101, 103)
"""The batches that modules are traced with, or others of odd sizes; what differs between two depends on the batch's size."""

_DEFAULTS = (
    "linear", "conv1d", "conv2d", "batch_norm", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "relu",
    "leaky_relu", "relu6", "prelu", "elu", "hardtanh", "clamp", "clamp_min", "sigmoid", "tanh", "gelu", "silu",
    "softplus", "abs", "sign", "exp", "log", "sqrt", "reciprocal", "erf", "square", "sin", "cos", "neg", "maximum",
    "minimum", "cat", "flip",
)  # fmt: skip
_OTHERS = (
    "conv2d.padding", "flatten.using_ints", "pow.Tensor_Scalar", "add.Tensor", "sub.Tensor", "mul.Tensor",
    "div.Tensor", "sum.dim_IntList", "mean.dim",
)  # fmt: skip
PLAIN = frozenset({*(f"aten.{name}.default" for name in _DEFAULTS), *(f"aten.{name}" for name in _OTHERS)})
"""Operators that read the same before and after composite ones are written out."""


def programs_of(model: nn.Module, x: Tensor) -> tuple[list[Any], list[int]]:
    """Return the module exported for two sizes of the batch that none of its own numbers equals, and these sizes."""
    batches = list(_BATCHES[:2])
    programs = [_exported(model, x, batch) for batch in batches]
    # What both programs mention is no size of a batch.
    own = set.intersection(*(_numbers(program) for program in programs))
    if own & set(batches):
        others = (batch for batch in itertools.count(_BATCHES[0], 2) if batch not in own)
        batches = list(itertools.islice(others, 2))
        programs = [_exported(model, x, batch) for batch in batches]
    return programs, batches


def _numbers(program: Any) -> set[int]:
    found: set[int] = set()
    stack = [one for node in program.graph.nodes for one in (*node.args, *node.kwargs.values())]
    while stack:
        one = stack.pop()
        if isinstance(one, list | tuple):
            stack.extend(one)
        elif isinstance(one, int):
            found.add(one)
    return found


def operators(program: Any) -> set[str]:
    """Return the names, such as "aten.linear.default", of all that a program computes with."""
    return {str(node.target) for node in program.graph.nodes if node.op not in ("placeholder", "output")}


def alike(program: Any, other: Any) -> bool:
    """Tell whether two programs are the same to the letter, so that neither mentions the size of its batch."""
    nested = any(node.op == "get_attr" for node in program.graph.nodes)
    constants, others = ([(key, one) for key, one in sorted(each.constants.items())] for each in (program, other))
    same = [a[0] == b[0] and _same(a[1], b[1]) for a, b in zip(constants, others, strict=False)]
    return not nested and str(program.graph) == str(other.graph) and len(constants) == len(others) and all(same)


def _same(one: Any, other: Any) -> bool:
    return (
        isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    )


def _exported(model: nn.Module, x: Tensor, batch: int) -> Any:
    example = x.detach()[:1].expand(batch, *x.shape[1:]).contiguous()
    with evaluating(model), stepwise(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(model, (example,))
        except Exception as problem:
            raise InputError(
                f"the model cannot be traced by torch.export: {_first_line(problem)}. Bounds need a module whose forward is "
                "made of torch operators without branches that depend on values."
            ) from problem


def decomposed(program: Any) -> Any:
    """Return a program with composite operators written out in simpler ones.

    Where none of them would change, the program itself: writing out takes two thirds of the time of a trace.
    """
    if operators(program) <= PLAIN:
        return program
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return program.run_decompositions(DECOMPOSITIONS)
        except Exception as problem:
            raise InputError(
                f"the model's operators cannot be written out in simpler ones: {_first_line(problem)}."
            ) from problem


def _first_line(problem: Exception) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return (lines[0] if lines else type(problem).__name__)[:300].rstrip(".")
