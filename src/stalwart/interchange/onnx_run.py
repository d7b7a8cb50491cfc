"""Running an ONNX file in onnxruntime: the second opinion on an imported network, and the judge of witnesses."""

from pathlib import Path

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from stalwart.core.errors import InputError
from stalwart.core.numbers import require
from stalwart.core.random import generator
from stalwart.interchange.onnx_file import check_model, extra, load_model
from stalwart.interchange.onnx_import import OnnxNet

_QUIET = 3  # errors only; old files make onnxruntime warn on stderr


class OnnxSession:
    """An ONNX file in onnxruntime on the CPU, one sample a run, as VNN-COMP replays witnesses.

    Args:
        path: the ``.onnx`` (or ``.onnx.gz``) file; it must have one float32 input and one output.
        threads: onnxruntime's threads; 1 gives the same numbers whatever the machine is doing.

    Raises:
        FileError, InputError, UsageError: as :func:`stalwart.interchange.read_onnx`, or onnxruntime cannot run the file.
    """

    def __init__(self, path: Path | str, threads: int = 1) -> None:
        require(threads >= 1, f"threads must be at least 1, got {threads}.")
        runtime = extra("onnxruntime")
        model = load_model(path)
        check_model(model, path)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        options.log_severity_level = _QUIET
        self.path = path
        try:
            self._session = runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as problem:  # onnxruntime's exceptions share no other base
            raise InputError(f"onnxruntime cannot run {path}: {problem}") from problem
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise InputError(f"{path} has {len(inputs)} inputs and {len(outputs)} outputs; one of each is needed.")
        self._input = inputs[0].name
        # An open axis is the batch, of one sample here.
        self._shape = [length if isinstance(length, int) and length > 0 else 1 for length in inputs[0].shape]

    def run(self, x: Float32[Tensor, " batch *shape"]) -> Float32[Tensor, " batch outputs"]:
        """Return the outputs for each row of ``x``, run one by one; a row may have any shape of the right size.

        Raises:
            InputError: the rows have the wrong size, or onnxruntime fails.
        """
        rows = []
        for sample in x.detach().cpu():
            try:
                found = self._session.run(None, {self._input: sample.reshape(self._shape).numpy()})[0]
            except Exception as problem:  # onnxruntime's exceptions share no other base
                raise InputError(
                    f"onnxruntime cannot run {self.path} on [{list(sample.shape)}]: {problem}"
                ) from problem
            rows.append(torch.from_numpy(found).reshape(-1))
        return torch.stack(rows)


def check_against_onnxruntime(
    path: Path | str,
    net: OnnxNet,
    samples: int = 16,
    seed: int = 0,
    lower: Float[Tensor, " inputs"] | None = None,
    upper: Float[Tensor, " inputs"] | None = None,
    tolerance: float | int = 1e-4,
) -> float:
    """Compare an imported network with onnxruntime on random inputs, as one batch here and one by one there.

    Args:
        path: the file ``net`` was read from.
        net: the network, in float32.
        samples: how many inputs to draw, at least 1.
        seed: seed of the draws.
        lower: smallest inputs [n] of the box to draw from, uniformly; default -1.
        upper: largest inputs [n]; default 1.
        tolerance: the largest difference |y - y'| / max(1, max |y'|) that counts as rounding, the maximum over all
            outputs and samples.

    Returns:
        The largest such difference.

    Raises:
        InputError: the outputs differ by more than ``tolerance``, or are not finite.
        UsageError: no sample, or a negative tolerance.
    """
    require(samples >= 1 and tolerance >= 0, "samples must be at least 1 and tolerance at least 0.")
    size = torch.Size(net.input_shape).numel()
    low = torch.full((size,), -1.0) if lower is None else lower.float()
    high = torch.full((size,), 1.0) if upper is None else upper.float()
    share = torch.rand(samples, size, generator=generator(seed, "onnxruntime"))
    x = (low + share * (high - low)).reshape(samples, *net.input_shape)
    theirs = OnnxSession(path).run(x)
    with torch.no_grad():
        ours = net(x)
    if not (theirs.isfinite().all() and ours.isfinite().all()):
        raise InputError(f"{path} gives NaN or infinity on random inputs; pass the box of inputs it was made for.")
    found = difference(ours, theirs)
    if found > tolerance:
        raise InputError(
            f"{path} computes something else here than in onnxruntime: the outputs differ by {found:.3g} of their size, "
            f"more than {tolerance:g}. Do not trust results on this network; please report the file."
        )
    return found


def require_same(
    session: OnnxSession, single: nn.Module, double: nn.Module, x: Float32[Tensor, " batch *shape"]
) -> None:
    """Refuse an imported network that computes something else than onnxruntime, whatever the size of its numbers.

    What counts as rounding is 1e-4 of the outputs' size, or 64 times what the network's own float32 evaluation is off.

    Args:
        session: the file in onnxruntime.
        single: the network in float32.
        double: the same in float64.
        x: inputs, shaped for the network. Where both sides give NaN or infinity nothing is compared.

    Raises:
        InputError: the outputs differ, or onnxruntime fails.
    """
    theirs = session.run(x)
    with torch.no_grad():
        ours, exact = single(x), double(x.double())
    fine = [y.isfinite().all(1) for y in (theirs, ours)]
    rows = fine[0] & fine[1] & exact.isfinite().all(1)
    found, allowed = torch.inf, 1e-4
    if torch.equal(*fine):
        if not rows.any():
            return
        size = theirs[rows].abs().max().clamp_min(1e-30)
        found = float((ours - theirs)[rows].abs().max() / size)
        allowed = max(allowed, 64 * float((ours - exact)[rows].abs().max() / size))
    if not found <= allowed:
        raise InputError(
            f"{session.path} computes something else here than in onnxruntime: the outputs differ by {found:.3g} of their "
            f"size, more than {allowed:.3g}. No verdict would hold for the file; please report it."
        )


def difference(ours: Float[Tensor, " batch outputs"], theirs: Float[Tensor, " batch outputs"]) -> float:
    """Return max |y - y'| / max(1, max |y'|) over all outputs and rows; NaN if any is NaN or infinite."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1))
