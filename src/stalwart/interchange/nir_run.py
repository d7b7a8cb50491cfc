"""Running a NIR graph in numpy, step by step: the judge of what is written, and of what was read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stalwart.core.errors import InputError
from stalwart.interchange.nir_file import DT, FORMAT, constants, plain

_ROUNDING = 1e-5
"""How near to its threshold, as a share of the largest number there, a membrane may end on either side of it."""
_NEURONS = ("IF", "LIF")
_STATES = (*_NEURONS, "I", "LI")


@dataclass
class NirRun:
    """What a graph did.

    Attributes:
        output: mean over the steps that count of what reaches the output, [B, ...].
        spikes: of each node of neurons, [T, B, ...]; nodes in a subgraph as "subgraph/node".
        wrong: while it followed given spikes: how many decisions of each node differ from them by more than rounding.
    """

    output: np.ndarray
    spikes: dict[str, np.ndarray] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)


def run_nir(
    graph: Any, x: np.ndarray, wait: int = 0, dt: float | None = None, follow: Mapping[str, np.ndarray] | None = None
) -> NirRun:
    """Run a graph for T steps from membranes of 0, in float32, by the rules of :mod:`stalwart.interchange.nir_file`.

    Nodes run in the order of the edges; what an edge brings back to a node before it arrives one step later.

    Args:
        graph: a ``nir.NIRGraph`` with one input and one output; subgraphs are looked into.
        x: what reaches the input, [T, B, ...].
        wait: how many first steps do not count for the output.
        dt: length of a step; by default the one in the file, or 1e-4.
        follow: spikes [T, B, ...] by node, that are sent in the place of those of the graph.

    Raises:
        InputError: a node of another kind, or one that does not fit.
    """
    ours = int(graph.metadata.get("stalwart", 0)) == FORMAT
    step = dt if dt is not None else float(graph.metadata.get("dt", DT))
    nodes, edges = inlined(graph)
    order, into, end = _order(nodes, edges)
    work = {name: _worker(nodes[name], name, step, ours, follow) for name in order}
    spikes: dict[str, list[np.ndarray]] = {name: [] for name in order if type(nodes[name]).__name__ in _NEURONS}
    now: dict[str, np.ndarray] = {}
    outputs = []
    for t, given in enumerate(x.astype(np.float32, copy=False)):
        for name in order:
            kind = type(nodes[name]).__name__
            arrived = [now[source] for source in into[name] if source in now]
            try:
                now[name] = given if kind == "Input" and not into[name] else work[name](sum(arrived[1:], arrived[0]))
            except (ValueError, IndexError) as problem:
                raise InputError(f"node '{name}' ({kind}) does not fit what it gets: {problem}.") from problem
            if name in spikes:
                spikes[name].append(now[name])
        if t >= wait:
            outputs.append(now[end])
    followed = [one for one in work.values() if isinstance(one, _Spiking) and follow is not None]
    return NirRun(
        np.stack(outputs).mean(0),
        {name: np.stack(one) for name, one in spikes.items()},
        {one.name: one.wrong for one in followed},
    )


def inlined(graph: Any, prefix: str = "") -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return all nodes by name and all edges; a subgraph's nodes are named "subgraph/node" and stand in its place."""
    nodes: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []
    doors: dict[str, tuple[str, str]] = {}
    for name, node in graph.nodes.items():
        full = f"{prefix}{name}"
        if hasattr(node, "nodes"):
            inner, further = inlined(node, f"{full}/")
            nodes.update(inner)
            edges.extend(further)
            doors[name] = (_only(node, "Input", full), _only(node, "Output", full))
        else:
            nodes[full] = node
            doors[name] = (full, full)
    for source, target in graph.edges:
        if source not in doors or target not in doors:
            raise InputError(f"the graph has an edge from '{source}' to '{target}', of which one is no node of it.")
        edges.append((doors[source][1], doors[target][0]))
    return nodes, edges


def _only(graph: Any, kind: str, name: str) -> str:
    found = [inner for inner, node in graph.nodes.items() if type(node).__name__ == kind]
    if len(found) != 1:
        raise InputError(f"subgraph '{name}' has {len(found)} nodes {kind}; one is needed.")
    return f"{name}/{found[0]}"


def _order(nodes: Mapping[str, Any], edges: list[tuple[str, str]]) -> tuple[list[str], dict[str, list[str]], str]:
    """Return nodes so that each follows what feeds it, except over edges that close a circle; what feeds each; the output."""
    into: dict[str, list[str]] = {name: [] for name in nodes}
    onto: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in edges:
        into[target].append(source)
        onto[source].append(target)
    starts = [name for name, node in nodes.items() if type(node).__name__ == "Input" and not into[name]]
    ends = [name for name, node in nodes.items() if type(node).__name__ == "Output" and not onto[name]]
    if len(starts) != 1 or len(ends) != 1:
        raise InputError(f"the graph has {len(starts)} inputs and {len(ends)} outputs; one of each is needed.")
    # Depth first from the input; nodes are complete when all behind them are.
    finished: list[str] = []
    stack = [(starts[0], iter(onto[starts[0]]))]
    seen = {starts[0]}
    while stack:
        name, rest = stack[-1]
        following = next((one for one in rest if one not in seen), None)
        if following is None:
            finished.append(name)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(onto[following])))
    lost = sorted(set(nodes) - seen)
    if lost:
        raise InputError(f"nothing leads from the graph's input to node '{lost[0]}'.")
    return finished[::-1], into, ends[0]


def _worker(
    node: Any, name: str, dt: float, ours: bool, follow: Mapping[str, np.ndarray] | None
) -> Callable[[np.ndarray], np.ndarray]:
    """Return what a node does with the values [B, ...] of one step."""
    kind = type(node).__name__
    if kind in _STATES:
        given = None if follow is None else follow.get(name)
        return _Spiking(node, name, dt, ours, given) if kind in _NEURONS else _Integrating(node, name, dt, ours)
    if kind in ("Input", "Output", "Identity"):
        return lambda x: x
    if kind in ("Linear", "Affine"):
        weight = plain(node.weight, name).astype(np.float32).T
        bias = plain(node.bias, name).astype(np.float32) if kind == "Affine" else np.float32(0)
        return lambda x: x @ weight + bias
    if kind == "Scale":
        scale = plain(node.scale, name).astype(np.float32)
        return lambda x: x * scale
    if kind in ("Conv1d", "Conv2d"):
        return _convolution(node, name)
    if kind in ("SumPool2d", "AvgPool2d"):
        kernel, stride, padding = (pair(one) for one in (node.kernel_size, node.stride, node.padding))
        area = np.float32(kernel[0] * kernel[1] if kind == "AvgPool2d" else 1)
        return lambda x: _windows(x, kernel, stride, padding, (1, 1)).sum((-2, -1), dtype=np.float32) / area
    if kind == "Flatten":
        return lambda x: _flattened(x, int(node.start_dim), int(node.end_dim))
    raise InputError(f"node '{name}' ({kind}) is of a kind that is not run here.")


class _Spiking:
    """IF and LIF neurons with their membranes; the reset is hard unless our metadata say otherwise."""

    def __init__(self, node: Any, name: str, dt: float, ours: bool, follow: np.ndarray | None) -> None:
        leak, gain = constants(node, name, dt, ours)
        self.name, self.follow, self.t, self.wrong = name, follow, 0, 0
        self.leak, self.gain = leak.astype(np.float32), gain.astype(np.float32)
        self.threshold, self.v_reset = (plain(one, name).astype(np.float32) for one in (node.v_threshold, node.v_reset))
        drift = (1 - leak) * plain(node.v_leak, name) if hasattr(node, "v_leak") else np.zeros(1)
        self.drift = drift.astype(np.float32)
        # θ itself, which the file holds as the number below it, is what a soft reset subtracts.
        self.soft = np.nextafter(self.threshold, np.float32(np.inf)) if node.metadata.get("reset") == "soft" else None
        self.v = np.asarray(node.metadata.get("initial", 0), np.float32)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        driven = x if (self.gain == 1).all() else self.gain * x
        u = self.leak * self.v + (driven + self.drift if self.drift.any() else driven)
        fired = u > self.threshold
        if self.follow is not None:
            given = self.follow[self.t] != 0
            size = max(float(np.abs(self.threshold).max()), float(np.abs(driven).max()))
            self.wrong += int(((fired != given) & (np.abs(u - self.threshold) > _ROUNDING * size)).sum())
            fired, self.t = given, self.t + 1
        s = fired.astype(np.float32)
        self.v = u - self.soft * s if self.soft is not None else np.where(fired, self.v_reset, u)
        return s


class _Integrating:
    """I and LI: membranes that never fire, and are what is sent."""

    def __init__(self, node: Any, name: str, dt: float, ours: bool) -> None:
        leak, gain = constants(node, name, dt, ours)
        self.leak, self.gain = leak.astype(np.float32), gain.astype(np.float32)
        drift = (1 - leak) * plain(node.v_leak, name) if hasattr(node, "v_leak") else np.zeros(1)
        self.drift, self.v = drift.astype(np.float32), np.zeros((), np.float32)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.v = self.leak * self.v + self.gain * x + self.drift
        return self.v


def _convolution(node: Any, name: str) -> Callable[[np.ndarray], np.ndarray]:
    weight = plain(node.weight, name).astype(np.float32)
    flat = weight.ndim == 3
    if flat:
        weight = weight[:, :, None]
    bias = plain(node.bias, name).astype(np.float32).reshape(-1, 1, 1)
    stride, dilation = (pair(one, flat) for one in (node.stride, node.dilation))
    kernel, groups = weight.shape[2:], int(node.groups)
    padding = zeros_around(node.padding, kernel, dilation, name, flat)

    def convolve(x: np.ndarray) -> np.ndarray:
        seen = _windows(x[:, :, None] if flat else x, kernel, stride, padding, dilation)
        parts = [
            np.tensordot(part, rows, ((1, 4, 5), (1, 2, 3)))
            for part, rows in zip(np.split(seen, groups, 1), np.split(weight, groups), strict=True)
        ]
        found = np.moveaxis(np.concatenate(parts, -1), -1, 1) + bias
        return found[:, :, 0] if flat else found

    return convolve


def _windows(
    x: np.ndarray, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> np.ndarray:
    """Return windows [B, C, H', W', kernel height, kernel width] of images [B, C, H, W]."""
    padded = np.pad(x, ((0, 0), (0, 0), (padding[0], padding[0]), (padding[1], padding[1])))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, (2, 3))
    return views[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def _flattened(x: np.ndarray, start: int, end: int) -> np.ndarray:
    axes = x.ndim - 1
    first, last = (one % axes for one in (start, end))
    return x.reshape(*x.shape[: first + 1], -1, *x.shape[last + 2 :])


def pair(value: Any, flat: bool = False) -> tuple[int, int]:
    """Return a node's size for both axes, [1 or 0, n] where there is one axis only."""
    numbers = [int(one) for one in np.asarray(value).reshape(-1)]
    if flat:
        return (1, numbers[0])
    return (numbers[0], numbers[-1])


def zeros_around(
    padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...], name: str, flat: bool = False
) -> tuple[int, int]:
    """Return how many zeros a convolution pads on each side of both axes.

    Raises:
        InputError: another number on one side than on the other.
    """
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        if any(one % 2 for one in total):
            raise InputError(f"node '{name}' pads one side more than the other, which is not understood.")
        return (total[0] // 2, total[1] // 2)
    around = pair(padding)
    return (0, around[1]) if flat else around
