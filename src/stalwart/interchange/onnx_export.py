"""Writing a PyTorch module as an ONNX file, checked in onnxruntime before it gets its name."""

import tempfile
import warnings
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from stalwart.core.errors import InputError
from stalwart.core.files import atomic
from stalwart.core.modes import elementary
from stalwart.core.numbers import require
from stalwart.core.random import generator
from stalwart.interchange.onnx_file import OPSETS, extra
from stalwart.interchange.onnx_run import OnnxSession, difference

_DRAWS = 8


def write_onnx(
    model: nn.Module,
    x_example: Float32[Tensor, " batch *shape"],
    path: Path | str,
    opset: int = 17,
    tolerance: float | int = 1e-4,
) -> float:
    """Write ``model`` in evaluation mode as an ONNX file that takes inputs ``x`` [B, ...] for any B and gives ``y`` [B, K].

    The file is run in onnxruntime on the example and on random inputs between its extremes, and gets its name only if
    it computes what the model computes; otherwise nothing is written. Batch normalisation behind a convolution is folded
    into it. A spiking network is unrolled: all its time steps stand in the file one after the other.

    Args:
        model: any deterministic module of float32 parameters that ``torch.jit.trace`` can follow.
        x_example: inputs it is made for, at least one row.
        path: the file to write.
        opset: the version of ONNX's operators to write.
        tolerance: the largest difference |y - y'| / max(1, max |y'|) that counts as rounding.

    Returns:
        The largest such difference.

    Raises:
        InputError: the model holds an operator that ONNX lacks, or the file computes something else, as it does if the model
            is random or depends on the batch.
        UsageError: an opset that cannot be read back, no example, or the extra ``stalwart[onnx]`` is not installed.
        FileError: the file cannot be written.
    """
    require(opset in OPSETS, f"opset must be in {OPSETS[0]} to {OPSETS[-1]}, got {opset}.")
    require(len(x_example) >= 1, "x_example must hold at least one input.")
    extra("onnx")
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "trial.onnx"
        _trace(model, x_example, trial, opset)
        found = _difference_in_onnxruntime(model, x_example, trial)
        content = trial.read_bytes()
    if not found <= tolerance:
        raise InputError(
            f"the ONNX file computes something else than the model: outputs differ by {found:.3g} of their size, more than "
            f"{tolerance:g}; {path} was not written. Is the model random, or does its forward depend on values or on the "
            "batch? Switch noise off and avoid such control flow."
        )
    with atomic(path) as stream:
        stream.write(content)
    return found


def _trace(model: nn.Module, x: Tensor, path: Path, opset: int) -> None:
    """Let torch write the file."""
    with warnings.catch_warnings():
        # The exporter that is to replace this one needs the package onnxscript.
        warnings.simplefilter("ignore", DeprecationWarning)
        # What is taken for a constant is found out by running the file on other inputs.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        try:
            with elementary():
                torch.onnx.export(
                    model,
                    (x,),
                    path,
                    dynamo=False,
                    opset_version=opset,
                    input_names=["x"],
                    output_names=["y"],
                    dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
                )
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as problem:
            raise InputError(
                f"the model cannot be written as ONNX: {problem} Replace what it names by operators that ONNX has."
            ) from problem


def _difference_in_onnxruntime(model: nn.Module, x: Tensor, path: Path) -> float:
    """Return how far the file's outputs are from the model's, in evaluation mode, as a share of their size."""
    low, high = x.amin(), x.amax()
    share = torch.rand(_DRAWS, *x.shape[1:], generator=generator(0, "export")).to(x.device)
    inputs = torch.cat([x[:_DRAWS], low + share * (high - low)])
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            ours = model(inputs).cpu()
    finally:
        for module, training in modes.items():
            module.training = training
    return difference(ours, OnnxSession(path).run(inputs))
