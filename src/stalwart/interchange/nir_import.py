"""Reading a NIR file as a spiking network."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stalwart.core.errors import FileError, InputError, UsageError
from stalwart.core.numbers import require
from stalwart.interchange.nir_file import DT, FORMAT, RESETS, above, constants, plain, read_graph
from stalwart.interchange.nir_parts import Membranes, Scale
from stalwart.interchange.nir_run import inlined, pair, zeros_around
from stalwart.spiking import LIF, Direct, InTime, SpikingNetwork, make_encoder
from stalwart.spiking.recurrent import RecurrentLIF


def read_nir(path: Path | str, steps: int | None = None, dt: float | int | None = None) -> SpikingNetwork:
    """Read a NIR file as a spiking network, by the conventions of :mod:`stalwart.interchange.nir_file`.

    A file of :func:`stalwart.interchange.write_nir` comes back as it was, with its encoder, steps, and what metadata say of
    resets and first membranes; weights hold what was folded into them, and derivatives of spikes are the default ones. Files of
    others are read as NIR defines them: neurons fire above their threshold and are reset to 0, one step is Euler's with dt.
    Understood are chains of ``Affine``, ``Linear``, ``Conv1d``, ``Conv2d``, ``SumPool2d``, ``AvgPool2d``, ``Flatten``,
    ``Scale``, ``IF``, ``LIF``, ``I``, ``LI``, and ``LIF`` or ``IF`` neurons in a circle with one ``Linear`` or ``Affine``
    node.

    Where other tools mean something else than they write: sinabs subtracts thresholds and sends several spikes a step; its LIF
    neurons count time in steps and decay by exp(-1 / tau), near to which ``dt=1`` comes; Norse's LIF neurons do not look at r;
    SpikingJelly's fire at the threshold, so that membranes exactly at it differ.

    Args:
        path: the file.
        steps: T; by default what the file says, which only ours do.
        dt: length of a step in the file's units of time; by default what the file says, else 1e-4.

    Returns:
        The network, in evaluation mode, [B, ...] to the mean of the outputs over time.

    Raises:
        FileError: missing, truncated, or no NIR file; nothing in it is executed.
        InputError: a node that is not understood, by its name.
        UsageError: neither the file nor the call says how many steps, or the extra ``stalwart[nir]`` is not installed.
    """
    require(steps is None or steps >= 1, f"steps must be at least 1, got {steps}.")
    require(dt is None or dt > 0, f"dt must be positive, got {dt}.")
    graph = read_graph(path)
    try:
        said = _said(graph.metadata)
    except (ValueError, TypeError, KeyError) as problem:
        raise FileError(f"the metadata of {path} are damaged ({problem}). Export it again.") from problem
    ours = bool(said)
    total = int(said.get("steps", 0)) if steps is None else steps
    if not total:
        raise UsageError(f"{path} does not say for how many time steps it runs; pass steps.")
    wait = int(said.get("wait", 0))
    require(wait < total, f"{path} waits for {wait} of its steps, so that {total} are too few; pass more.")
    reader = _Reader(total, float(said.get("dt", DT) if dt is None else dt), ours)
    try:
        layers = reader.read(graph)
        encoder = make_encoder(said["encoder"], total) if ours else Direct(total)
        network = SpikingNetwork(encoder, layers, total, wait=wait)
    except InputError:
        raise
    except (TypeError, AttributeError, ValueError, RuntimeError, IndexError) as problem:
        raise FileError(f"{path} holds numbers that are none of a network ({problem}). Export it again.") from problem
    _try(layers, reader.shape, total, path)
    return network.eval()


def _said(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return our metadata of a graph; nothing if it is not ours."""
    if "stalwart" not in metadata:
        return {}
    version = int(metadata["stalwart"])
    if version != FORMAT:
        raise ValueError(f"their version is {version}, this library reads {FORMAT}")
    said = {name: int(metadata[name]) for name in ("steps", "wait")}
    if said["steps"] < 1 or not 0 <= said["wait"] < said["steps"]:
        raise ValueError(f"steps are {said['steps']}, of which {said['wait']} do not count")
    step = float(metadata["dt"])
    if not (step > 0 and np.isfinite(step)):
        raise ValueError(f"dt is {step}")
    encoder = json.loads(metadata["encoder"])
    if not isinstance(encoder, dict):
        raise ValueError("the encoder has no name")
    return {**said, "dt": step, "encoder": encoder}


def _try(layers: nn.Module, shape: tuple[int, ...] | None, steps: int, path: Path | str) -> None:
    """Run the layers on zeros: shapes that do not fit show here."""
    if shape is None:
        return
    try:
        with torch.no_grad():
            layers(torch.zeros(steps, *shape))
    except (RuntimeError, ValueError, IndexError) as problem:
        first = str(problem).splitlines()[0]
        raise InputError(f"the nodes of {path} do not fit each other: {first}") from problem


class _Reader:
    """Makes layers of the nodes of one graph."""

    def __init__(self, steps: int, dt: float, ours: bool) -> None:
        self.steps, self.dt, self.ours = steps, dt, ours
        self.shape: tuple[int, ...] | None = None

    def read(self, graph: Any) -> nn.Sequential:
        """Return the graph's layers in a row.

        Raises:
            InputError: a node that is not understood, or a graph that is no chain.
        """
        nodes, edges = inlined(graph)
        chain, circles = _chain(nodes, edges)
        input_shape = nodes[chain[0]].input_type["input"]
        self.shape = None if input_shape is None else tuple(int(side) for side in np.asarray(input_shape).reshape(-1))
        layers: list[nn.Module] = []
        for name in chain:
            node = nodes[name]
            kind = type(node).__name__
            if kind in ("Input", "Output", "Identity"):
                continue
            if name in circles:
                back = circles[name]
                layers.append(InTime(self._recurrent(node, name, nodes[back], back, layers), self.steps))
                continue
            made: Callable[[Any, str], nn.Module] | None = {
                "Affine": _linear,
                "Linear": _linear,
                "Conv1d": _convolution,
                "Conv2d": _convolution,
                "SumPool2d": _pooling,
                "AvgPool2d": _pooling,
                "Flatten": _flattening,
                "Scale": lambda node, name: Scale(_tensor(node.scale, name)),
                "I": self._integrators,
                "IF": self._neurons,
                "LI": self._integrators,
                "LIF": self._neurons,
            }.get(kind)
            if made is None:
                raise InputError(
                    f"node '{name}' ({kind}) is not understood; read are chains of affine layers, convolutions, pooling, "
                    "flattening, IF and LIF neurons, I and LI integrators."
                )
            layers.append(made(node, name))
        return nn.Sequential(*layers)

    def _neurons(self, node: Any, name: str) -> nn.Module:
        leak, threshold, reset = self._numbers(node, name)
        extras = {}
        initial = node.metadata.get("initial") if self.ours else None
        if initial is not None:
            first = _few(plain(initial, name).astype(np.float32))
            extras["initial"] = tuple(first.shape)
        shape = threshold.shape
        neuron = LIF(1.0, 1.0, tuple(shape), reset=reset, extras=extras)
        # One leak and many thresholds, or the reverse, are of different shapes.
        neuron.leak, neuron.threshold = leak, threshold
        if initial is not None:
            neuron.fill(initial=first)
        return InTime(neuron, self.steps)

    def _integrators(self, node: Any, name: str) -> nn.Module:
        leak, gain = constants(node, name, self.dt, self.ours)
        _require_rest(node, name)
        return InTime(Membranes(*(_few(one.astype(np.float32)) for one in (leak, gain))), self.steps)

    def _numbers(self, node: Any, name: str) -> tuple[Tensor, Tensor, str]:
        """Return leak and threshold in units of the input, of the smallest shapes that say it, and the reset."""
        leak, gain = constants(node, name, self.dt, self.ours)
        threshold = plain(node.v_threshold, name)
        _require_rest(node, name)
        # What multiplies the currents may as well divide the threshold: the spikes are the same.
        near = np.abs(gain - 1) < 1e-6
        level = above(np.where(near, threshold, threshold / gain))
        if not (np.isfinite(level) & (level > 0)).all():
            raise InputError(f"node '{name}' has a threshold that is not positive; neurons here need a positive one.")
        known = node.metadata.get("leak") if self.ours else None
        if known is not None and np.shape(known) == leak.shape:
            # tau rounds; a leak that it agrees with is the one that was meant.
            leak = np.where(np.abs(leak - known) < 1e-6, known, leak)
        reset = str(node.metadata.get("reset", "hard")) if self.ours else "hard"
        if reset not in RESETS:
            raise InputError(f"node '{name}' has the reset '{reset}'; known are {' and '.join(RESETS)}.")
        return _few(leak.astype(np.float32)), _few(level), reset

    def _recurrent(self, node: Any, name: str, back: Any, back_name: str, layers: list[nn.Module]) -> RecurrentLIF:
        """Return neurons in a circle with weights; linear weights right before, without a bias, become their input's."""
        if type(node).__name__ not in ("IF", "LIF") or type(back).__name__ not in ("Linear", "Affine"):
            raise InputError(
                f"nodes '{name}' ({type(node).__name__}) and '{back_name}' ({type(back).__name__}) form a circle; only "
                "IF or LIF neurons with one Linear or Affine node are understood."
            )
        leak, threshold, reset = self._numbers(node, name)
        if leak.dim() or threshold.dim():
            raise InputError(f"node '{name}' has several leaks or thresholds; recurrent neurons here share one.")
        weight = _tensor(back.weight, back_name)
        bias = _tensor(back.bias, back_name) if type(back).__name__ == "Affine" else torch.zeros(1)
        if weight.dim() != 2 or weight.shape[0] != weight.shape[1] or bool(weight.diagonal().any()) or bool(bias.any()):
            raise InputError(
                f"node '{back_name}' has a bias, or leads from neurons to themselves; recurrent weights here do neither."
            )
        units = len(weight)
        # Only weights without a bias are the neurons' own.
        own = layers.pop() if layers and isinstance(layers[-1], nn.Linear) and layers[-1].bias is None else None
        weights = torch.eye(units) if own is None else own.weight.detach()
        assert isinstance(weights, Tensor)
        made = RecurrentLIF(weights.shape[1], units, float(leak), float(threshold), reset)
        with torch.no_grad():
            if made.input.weight.shape != weights.shape:
                raise InputError(f"node '{name}' has {units} neurons, the weights before it {len(weights)} rows.")
            made.input.weight.copy_(weights)
            made.recurrent.weight.copy_(weight)
        return made


def _chain(nodes: dict[str, Any], edges: list[tuple[str, str]]) -> tuple[list[str], dict[str, str]]:
    """Return the names of the nodes in a row, and by name of neurons the node that brings their spikes back to them."""
    circles = {b: a for a, b in edges if a != b and (b, a) in edges and type(nodes[a]).__name__ in ("Linear", "Affine")}
    closed = {pair for name, back in circles.items() for pair in ((name, back), (back, name))}
    rest = [edge for edge in edges if edge not in closed]
    inside = set(circles.values())
    starts = [
        name for name, node in nodes.items() if type(node).__name__ == "Input" and all(b != name for _, b in rest)
    ]
    if len(starts) != 1:
        raise InputError(f"the graph has {len(starts)} inputs; one is needed.")
    chain = [starts[0]]
    while True:
        following = [b for a, b in rest if a == chain[-1]]
        arriving = [a for a, b in rest if b == chain[-1]]
        if len(following) > 1 or len(arriving) > 1 or chain[-1] in inside or chain[-1] in chain[:-1]:
            raise InputError(f"node '{chain[-1]}' stands where the graph branches; only chains of nodes are read.")
        if not following:
            break
        chain.append(following[0])
    left = sorted(set(nodes) - set(chain) - inside)
    if left:
        raise InputError(f"node '{left[0]}' is not part of the chain that starts at the input; only chains are read.")
    return chain, circles


def _require_rest(node: Any, name: str) -> None:
    if any(plain(getattr(node, one), name).any() for one in ("v_reset", "v_leak") if hasattr(node, one)):
        raise InputError(f"node '{name}' rests or is reset at other membranes than 0, which neurons here cannot.")


def _tensor(value: Any, name: str) -> Tensor:
    return torch.from_numpy(plain(value, name).astype(np.float32))


def _few(values: np.ndarray) -> Tensor:
    """Return numbers of a sample's shape as one, as one a channel, or as they are."""
    if (values == values.flat[0]).all():
        return torch.tensor(values.flat[0])
    column = values.reshape(len(values), -1)[:, 0].reshape(-1, *[1] * (values.ndim - 1))
    return torch.from_numpy(np.ascontiguousarray(column if (values == column).all() else values))


@torch.no_grad()
def _linear(node: Any, name: str) -> nn.Module:
    weight = _tensor(node.weight, name)
    if weight.dim() != 2:
        raise InputError(f"node '{name}' has weights of shape {list(weight.shape)}; linear layers have two dimensions.")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=hasattr(node, "bias"))
    layer.weight.copy_(weight)
    if hasattr(node, "bias"):
        layer.bias.copy_(_tensor(node.bias, name))
    return layer


@torch.no_grad()
def _convolution(node: Any, name: str) -> nn.Module:
    weight, groups = _tensor(node.weight, name), int(node.groups)
    flat = weight.dim() == 3
    stride, dilation = (pair(one, flat) for one in (node.stride, node.dilation))
    kernel = (1, weight.shape[2]) if flat else (weight.shape[2], weight.shape[3])
    padding = zeros_around(node.padding, kernel, dilation, name, flat)
    axes = slice(1, 2) if flat else slice(0, 2)
    kind: Any = nn.Conv1d if flat else nn.Conv2d
    sizes = [one[axes] for one in (kernel, stride, padding, dilation)]
    layer: nn.Module = kind(weight.shape[1] * groups, len(weight), *sizes, groups=groups)
    assert isinstance(layer.weight, Tensor)
    assert isinstance(layer.bias, Tensor)
    layer.weight.copy_(weight)
    layer.bias.copy_(_tensor(node.bias, name))
    return layer


def _pooling(node: Any, name: str) -> nn.Module:
    kernel, stride, padding = (pair(one) for one in (node.kernel_size, node.stride, node.padding))
    return nn.AvgPool2d(kernel, stride, padding, divisor_override=1 if type(node).__name__ == "SumPool2d" else None)


def _flattening(node: Any, name: str) -> nn.Module:
    # The batch comes before NIR's axes.
    start, end = (one + 1 if one >= 0 else one for one in (int(node.start_dim), int(node.end_dim)))
    return nn.Flatten(start, end)
