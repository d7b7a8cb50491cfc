"""What ``stalwart doctor`` prints: the machine's fast paths, and what in a model bounds do not know, by module path."""

import os
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from stalwart.bounds.rules.table import rule_of, unsupported
from stalwart.core import jit
from stalwart.core.errors import InputError, UsageError
from stalwart.core.modes import evaluating
from stalwart.graph import trace
from stalwart.interchange import read_onnx
from stalwart.recipes.foreign import foreign_model
from stalwart.recipes.runs import Source, load_run
from stalwart.stochastic import is_random


def machine() -> str:
    """Return one line a fact about this installation."""
    loops = f"numba {version('numba')}" if jit.available() else "none (pip install 'stalwart[fast]')"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return "\n".join(
        (
            f"torch            {torch.__version__}, {torch.get_num_threads()} of {os.cpu_count()} CPU threads",
            f"GPU              {gpu}",
            f"compiled loops   {loops}",
            f"spiking neurons  {'compiled loops on the CPU' if jit.available() else 'plain PyTorch'}, plain PyTorch elsewhere",
            f"onnx             {_installed('onnx')}, onnxruntime {_installed('onnxruntime')}",
        )
    )


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none (pip install 'stalwart[onnx]')"


def diagnose(model: nn.Module, shape: tuple[int, ...]) -> tuple[str, bool]:
    """Return what bounds make of a model for inputs of ``shape`` (one sample), and whether all of it is supported."""
    x = torch.rand(2, *shape)
    if is_random(model):
        return "The model is randomised: attack it with eot, certify it by smoothing; bounds need its noise off.", False
    try:
        with evaluating(model):
            graph = trace(model, x)
    except InputError as problem:
        return f"Bounds cannot read the model: {problem}", False
    missing = unsupported(graph)
    known = [node for node in graph.nodes if node.batched and node.op != "input" and node not in missing]
    counts = Counter(node.op for node in known)
    lines = ["operators that bounds know:"]
    lines += [
        f"  {op:<24}{count:>4}  {'relaxed' if any(rule_of(n).relaxed for n in known if n.op == op) else 'exact'}"
        for op, count in sorted(counts.items())
    ]
    if missing:
        lines += ["not supported:"] + [f"  {node.where}" for node in missing]
        lines += ["Replace these operators, or bound a part of the model without them."]
    else:
        lines += ["Every operator is supported."]
    return "\n".join(lines), not missing


def subject(
    target: Path | None, model: str | None, shape: str | None, source: Source
) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the network to look at, a run's, an .onnx file's or a foreign one, and the shape of one of its inputs.

    Raises:
        UsageError: a foreign model without a shape, or with one that is none.
        StalwartError: nothing that can be loaded.
    """
    if model is not None:
        if shape is None:
            raise UsageError("a foreign model needs --shape, that of one input, such as 1,28,28.")
        if not all(side.strip().isdigit() and int(side) > 0 for side in shape.split(",")):
            raise UsageError(f"--shape must be positive integers such as 1,28,28, got '{shape}'.")
        return foreign_model(model, None), tuple(int(side) for side in shape.split(","))
    assert target is not None
    if target.suffix == ".onnx":
        onnx = read_onnx(target)
        return onnx, onnx.input_shape
    _, network, data = load_run(target, source)
    return network, data.shape
