"""Writing a spiking network as a NIR file, run in numpy and compared with the network before it gets its name."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from stalwart.core.errors import InputError
from stalwart.core.files import atomic
from stalwart.core.hooks import removing
from stalwart.core.modes import evaluating
from stalwart.core.numbers import require
from stalwart.interchange.nir_chain import chain_of, split
from stalwart.interchange.nir_file import DT, FORMAT, below, graph_of, write_bytes
from stalwart.interchange.nir_parts import Factor, Fires, Flat, Part, SumPool, Weights
from stalwart.interchange.nir_run import run_nir
from stalwart.interchange.onnx_file import extra
from stalwart.interchange.onnx_run import difference
from stalwart.spiking import Direct, EventFrames, Gaussian, InTime, Latency, Poisson, Quantised, SpikingNetwork

LOSSES = ("soft-reset", "initial")
"""What ``allow_lossy`` can name."""

_ENCODERS: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    Direct: ("direct", ()),
    EventFrames: ("events", ()),
    Gaussian: ("gaussian", ("sigma",)),
    Latency: ("latency", ()),
    Poisson: ("poisson", ("signed", "rate")),
}
_TOLERANCE = 1e-4
_COMPARISON = "fires at v >= theta; v_threshold is the float32 number below theta, so that v > v_threshold is the same"


def write_nir(
    network: nn.Module,
    x_example: Float32[Tensor, " batch *shape"],
    path: Path | str,
    *,
    dt: float | int = DT,
    allow_lossy: tuple[str, ...] = (),
) -> float:
    """Write a spiking network in evaluation mode as a NIR file: one step of it as a graph, conventions as in ``nir_file``.

    Written are stacks of convolutions in one or two dimensions, linear layers, average pooling (as sums, with 1/k² in the
    weights behind), flattening, :class:`stalwart.spiking.LIF` and ``RecurrentLIF`` neurons. Batch norm,
    normalisation, what spikes are worth and constant currents go into the weights beside them; dropout is left out. The
    encoder runs outside of the graph: its input is the encoder's output at one step, analog where the encoder is "direct";
    logits are the mean of its output over the steps.

    The file's content is read back and run in numpy on the example. It gets its name only if each neuron there fires as in
    the network, decisions within rounding of the threshold aside, and the outputs agree; otherwise nothing is written.

    Args:
        network: a :class:`stalwart.spiking.SpikingNetwork`, or a stack that holds one between layers that are affine.
        x_example: inputs [B, ...] in float32, at least one; all of them are run.
        path: the file to write.
        dt: length of a step in the file's units of time, positive; most readers assume 1e-4.
        allow_lossy: what may be left to metadata that only this library reads: "soft-reset", of neurons that subtract their
            threshold, and "initial", membranes before the first step. Other readers will compute something else.

    Returns:
        The largest difference of outputs, |y - y'| / max(1, max |y'|).

    Raises:
        InputError: a layer that NIR cannot express, by its module path and with what to do; or the graph computes something
            else.
        UsageError: no example, an unknown loss, a dt out of range, or the extra ``stalwart[nir]`` is not installed.
        FileError: the file cannot be written.

    Example:
        >>> layers = nn.Sequential(nn.Linear(4, 8), InTime(LIF(1.0, reset="hard"), 5), nn.Linear(8, 3))
        >>> write_nir(SpikingNetwork(Direct(5), layers, 5), torch.rand(2, 4), "net.nir") < 1e-5  # doctest: +SKIP
        True
    """
    require(len(x_example) >= 1, "x_example must hold at least one input.")
    require(dt > 0 and math.isfinite(dt), f"dt must be positive, got {dt}.")
    unknown = set(allow_lossy) - set(LOSSES)
    require(not unknown, f"allow_lossy can name {' and '.join(LOSSES)}, not {', '.join(sorted(unknown))}.")
    extra("nir", "nir")
    found, before, layers = split(network)
    with evaluating(network), torch.no_grad():
        # What cannot be written is said before anything runs.
        shape = tuple(found.encoder(x_example[:1]).shape[2:])
        parts = chain_of(layers, shape, allow_lossy)
        metadata = {
            "stalwart": FORMAT,
            "steps": found.steps,
            "wait": found.wait,
            "dt": float(dt),
            "encoder": json.dumps(_described(found.encoder)),
        }
        content = write_bytes(build_graph(parts, shape, metadata))
        spikes, encoded, y = _recorded(network, found, layers, x_example, before)
    result = _check(content, encoded.cpu().numpy(), spikes, y.cpu(), parts, found.wait, path)
    with atomic(path) as stream:
        stream.write(content)
    return result


def build_graph(parts: list[Part], shape: tuple[int, ...], metadata: dict[str, Any]) -> Any:
    """Return a chain as a ``nir.NIRGraph`` whose nodes are named by module path.

    Args:
        parts: in order.
        shape: of one sample at one step.
        metadata: of the graph.
    """
    nir = extra("nir", "nir")
    nodes: dict[str, Any] = {"input": nir.Input(np.array(shape))}
    for part in parts:
        name = part.path
        while name in nodes or name == "output":  # a module may have the name of one of our own nodes
            name += "_"
        nodes[name] = _node(nir, part, float(metadata["dt"]))
    names = list(nodes)
    nodes["output"] = nir.Output(_output_shape(nir, nodes, names))
    edges = list(zip(names, [*names[1:], "output"], strict=True))
    return nir.NIRGraph(nodes=nodes, edges=edges, metadata=metadata)


def _output_shape(nir: Any, nodes: dict[str, Any], names: list[str]) -> np.ndarray:
    """Return the shape behind the last node, by nir's own rules, which also fill in the shapes of pooling."""
    edges = list(itertools.pairwise(names))
    nir.NIRGraph(nodes=dict(nodes), edges=edges, type_check=True)
    (shape,) = nodes[names[-1]].output_type.values()
    return np.array(shape)


def _node(nir: Any, part: Part, dt: float) -> Any:
    if isinstance(part, Weights):
        return _weights(nir, part)
    if isinstance(part, SumPool):
        return nir.SumPool2d(*(np.array(one) for one in (part.kernel, part.stride, part.padding)))
    if isinstance(part, Flat):
        return nir.Flatten(np.array(part.shape), part.start, part.end)
    if isinstance(part, Factor):
        return nir.Scale(part.scale.float().numpy().copy())
    neurons = _neurons(nir, part, dt)
    if part.recurrent is None:
        return neurons
    size = np.array(part.leak.shape)
    inner = {
        "input": nir.Input(size),
        "lif": neurons,
        "w_rec": nir.Linear(part.recurrent.float().numpy()),
        "output": nir.Output(size),
    }
    edges = [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")]
    return nir.NIRGraph(nodes=inner, edges=edges, metadata={})


def _weights(nir: Any, part: Weights) -> Any:
    weight = part.weight.float().numpy()
    if not part.stride:
        return nir.Linear(weight) if part.bias is None else nir.Affine(weight, part.bias.float().numpy())
    bias = np.zeros(len(weight), np.float32) if part.bias is None else part.bias.float().numpy()
    if weight.ndim == 3:
        sizes: list[Any] = [int(one[0]) for one in (part.stride, part.padding, part.dilation)]
        return nir.Conv1d(int(part.shape[1]), weight, *sizes, 1, bias)
    sizes = [tuple(int(n) for n in one) for one in (part.stride, part.padding, part.dilation)]
    return nir.Conv2d((int(part.shape[1]), int(part.shape[2])), weight, *sizes, 1, bias)


def _neurons(nir: Any, part: Fires, dt: float) -> Any:
    leak, threshold = part.leak.double().numpy(), below(part.threshold.numpy())
    metadata: dict[str, Any] = {"reset": part.reset, "comparison": _COMPARISON, "leak": part.leak.numpy().copy()}
    if part.initial is not None:
        metadata["initial"] = part.initial.numpy().copy()
    zeros = np.zeros_like(threshold)
    if (leak == 1).all():
        return nir.IF(np.full(leak.shape, 1 / dt), threshold, zeros, metadata=metadata)
    with np.errstate(divide="ignore"):
        tau, r = dt / (1 - leak), 1 / (1 - leak)
    return nir.LIF(tau, r, zeros, threshold, zeros.copy(), metadata=metadata)


def _described(encoder: nn.Module) -> dict[str, Any]:
    """Return an encoder by name and options, as :func:`stalwart.spiking.make_encoder` takes them."""
    if isinstance(encoder, Quantised):
        return {**_described(encoder.encoder), "bits": encoder.bits}
    if type(encoder) not in _ENCODERS:
        known = ", ".join(name for name, _ in _ENCODERS.values())
        raise InputError(f"the encoder {type(encoder).__name__} has no name to write down; use one of {known}.")
    name, options = _ENCODERS[type(encoder)]
    return {"name": name, **{option: getattr(encoder, option) for option in options}}


def _recorded(
    model: nn.Module, network: SpikingNetwork, layers: list[tuple[str, nn.Module]], x: Tensor, before: bool
) -> tuple[list[np.ndarray], Tensor, Tensor]:
    """Return the spikes of each layer of neurons [T, B, ...], what enters the graph [T, B, ...], and the outputs."""
    spikes: list[np.ndarray] = []
    entered: list[Tensor] = []

    def fired(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        spikes.append((out != 0).cpu().numpy())

    def enters(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        entered.append(out.detach())

    neurons = {layer.neuron for _, layer in layers if isinstance(layer, InTime)}
    hooks = [neuron.register_forward_hook(fired) for neuron in neurons]
    hooks.append(network.encoder.register_forward_hook(enters))
    with removing(hooks):
        y = model(x)
    # What stands before the encoder is part of the graph, so that inputs enter it as they are.
    return spikes, network.encoder(x) if before else entered[0], y


def _check(
    content: bytes,
    x: np.ndarray,
    spikes: list[np.ndarray],
    y: Tensor,
    parts: list[Part],
    wait: int,
    path: Path | str,
) -> float:
    """Return how far the outputs of a file's content are from the network's; refuse spikes that differ.

    Args:
        content: of the file.
        x: what enters the graph, [T, B, ...].
        spikes: of the network, by layer.
        y: outputs of the network.
        parts: of the chain, for their names.
        wait: how many steps do not count.
        path: the file, for messages.
    """
    graph = graph_of(content, path)
    found = run_nir(graph, x, wait)
    theirs = dict(zip(found.spikes, spikes, strict=True))
    if any(not np.array_equal(found.spikes[name] != 0, one) for name, one in theirs.items()):
        # A membrane at its threshold may fall on either side; from there on the two would go different ways.
        followed = run_nir(graph, x, wait, follow=theirs)
        for name, wrong in followed.wrong.items():
            if wrong:
                counts = int((found.spikes[name] != 0).sum()), int(theirs[name].sum())
                raise InputError(
                    f"the NIR graph computes something else than the network: node '{name}' sends {counts[0]} spikes on "
                    f"the example, the network {counts[1]}, and {wrong} decisions are no matter of rounding; {path} was "
                    "not written. Is the encoder's noise on, or does a layer depend on the batch?"
                )
        found = followed
    off = difference(torch.from_numpy(found.output).flatten(1), y.flatten(1))
    if not off <= _TOLERANCE:
        raise InputError(
            f"the NIR graph computes something else than the network: outputs differ by {off:.3g} of their size, more "
            f"than {_TOLERANCE:g}; {path} was not written. Does the network depend on the batch?"
        )
    return off
