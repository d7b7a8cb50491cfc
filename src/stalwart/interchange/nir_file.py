"""NIR files as data, and what their numbers mean here.

NIR describes one layer after the other, its neurons by differential equations. A file says nothing of time steps, so that
whoever reads it needs a rule for them. Ours is Euler's, with the step ``dt`` in the file's own units of time:

    LIF:  tau dv/dt = (v_leak - v) + r I      v ← λ v + g I,   λ = 1 - dt / tau,   g = r dt / tau
    IF:       dv/dt = r I                     v ← v + g I,     g = r dt
    both: z = 1[v > v_threshold], then v ← v_reset where z = 1

so that λ and g = 1 are written as tau = dt / (1 - λ), r = 1 / (1 - λ), or r = 1 / dt where λ = 1. snnTorch and SpikingJelly
use the same rule with dt = 1e-4. Norse and sinabs do not look at r, and write r = 1 for IF neurons whose g is 1 whatever dt
is; such IF neurons are read as they mean it.

Neurons here fire at v >= θ, NIR's above the threshold. The file therefore holds the float32 number below θ: for
float32 membranes v > pred(θ) and v >= θ are the same. Read back, every threshold moves up by one float32 number.

What only we understand stands in metadata: at the graph the number of steps, dt and the encoder, which is not part of the
graph; at neurons a soft reset and first membranes, which NIR cannot say.

Source: Pedersen et al., "Neuromorphic intermediate representation: a unified instruction set for interoperable brain-inspired
computing", Nature Communications 15, 2024, table 1; the package ``nir`` 1.0.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from stalwart.core.errors import FileError, InputError
from stalwart.interchange.files import read_limited
from stalwart.interchange.onnx_file import extra

FORMAT = 1
"""The version of our metadata."""
DT = 1e-4
"""The step that snnTorch and SpikingJelly assume."""
RESETS = ("hard", "soft")

_MOST_BYTES = 2**31 - 1
_MOST_NESTED = 16


def write_bytes(graph: Any) -> bytes:
    """Return a NIR graph as the content of its HDF5 file."""
    stream = io.BytesIO()
    extra("nir", "nir").write(stream, graph)
    return stream.getvalue()


def read_graph(path: Path | str) -> Any:
    """Read a NIR file as a ``nir.NIRGraph``; see :func:`graph_of`.

    Raises:
        FileError: missing, truncated, larger than 2 GiB, or no NIR file.
        UsageError: the extra ``stalwart[nir]`` is not installed.
    """
    extra("nir", "nir")
    return graph_of(read_limited(path, "NIR file", _MOST_BYTES), path)


def graph_of(content: bytes, path: Path | str) -> Any:
    """Return the graph in the content of a file; HDF5 that reaches into other files is refused, and nothing is executed.

    Args:
        content: of the file.
        path: the file, for messages.

    Raises:
        FileError: no NIR file, truncated, or with arrays of more than 2 GiB.
    """
    nir, h5py = extra("nir", "nir"), extra("h5py", "nir")
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            _require_own(h5py, file, 0, [0])
        graph = nir.read(io.BytesIO(content), type_check=False)
        if not isinstance(graph, nir.NIRGraph):
            raise ValueError(f"it holds a {type(graph).__name__}, not a graph")
    except Exception as problem:  # HDF5 and nir raise almost anything on what they do not expect
        why = " ".join(str(problem).split()) or type(problem).__name__
        raise FileError(f"{path} is not a NIR file, or it is truncated ({why}). Export it again.") from problem
    return graph


def _require_own(h5py: Any, group: Any, depth: int, total: list[int]) -> None:
    """Refuse links, data in other files, and arrays that would not fit: a small file can declare huge ones."""
    if depth > _MOST_NESTED:
        raise ValueError("its groups are nested too deeply")
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"'{name}' is a link")
        item = group[name]
        if isinstance(item, h5py.Group):
            _require_own(h5py, item, depth + 1, total)
        elif isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise ValueError(f"'{name}' lies in another file")
            total[0] += item.size * item.dtype.itemsize if item.shape is not None else 0
            if total[0] > _MOST_BYTES:
                raise ValueError("its arrays take more than 2 GiB")
        else:
            raise ValueError(f"'{name}' is neither a group nor an array")


def below(threshold: np.ndarray) -> np.ndarray:
    """Return the float32 numbers below: v > below(θ) where v >= θ."""
    return np.nextafter(threshold.astype(np.float32), np.float32(-np.inf))


def above(threshold: np.ndarray) -> np.ndarray:
    """Return the float32 numbers above: v >= above(θ) where v > θ."""
    # What float32 cannot hold exactly must not round up first.
    near = threshold.astype(np.float32)
    over = near.astype(np.float64) > threshold.astype(np.float64)
    return np.where(over, near, np.nextafter(near, np.float32(np.inf)))


def constants(node: Any, name: str, dt: float, ours: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return λ and g of an IF, LIF, I or LI node, float64 of the node's shape.

    Args:
        node: of ``nir``.
        name: its name, for messages.
        dt: length of a step.
        ours: whether we wrote the file; otherwise r = 1 of IF and I nodes stands for g = 1.

    Raises:
        InputError: a leak outside [0, 1] or a gain that is not positive, as another dt would give them.
    """
    r = np.asarray(node.r, np.float64)
    if hasattr(node, "tau"):
        tau = np.asarray(node.tau, np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = dt / tau
            # A leak of 1 as an LIF node: snnTorch divides by 0 and writes infinity for both.
            gain = np.where(np.isinf(tau) & np.isinf(r), 1.0, r * share)
        leak = 1 - share
    else:
        leak = np.ones_like(r)
        gain = np.ones_like(r) if not ours and (r == 1).all() else r * dt
    if not ((leak >= 0) & (leak <= 1)).all():
        raise InputError(
            f"node '{name}' has a time constant below the step dt = {dt:g}, which would make its membranes swing. Pass "
            "the dt that the file was made for."
        )
    if not ((gain > 0) & np.isfinite(gain)).all():
        raise InputError(f"node '{name}' has a resistance r that is not positive; neurons here need a positive one.")
    return leak, gain


def plain(value: Any, name: str) -> np.ndarray:
    """Return a node's array.

    Raises:
        InputError: it holds NaN.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or np.isnan(array.astype(np.float64)).any():
        raise InputError(f"node '{name}' holds NaN, or what are no numbers; export the network again.")
    return array
