"""Reading NIR graphs that others wrote, and refusing what is none or cannot be understood."""

import io
import math

import numpy as np
import pytest
import torch
from nir_networks import images, network, neurons, nir
from torch import nn

from stalwart.core.errors import FileError, InputError, UsageError
from stalwart.interchange import read_nir, run_nir, write_nir
from stalwart.spiking import InTime
from stalwart.spiking.recurrent import RecurrentLIF

h5py = pytest.importorskip("h5py", reason="the extra stalwart[nir] is not installed")

RANDOM = np.random.default_rng(0)


def draw(*shape):
    return RANDOM.uniform(-0.3, 0.5, shape).astype(np.float32)


def affine(inputs=8, outputs=6):
    return nir.Affine(draw(outputs, inputs), draw(outputs))


def integrate(units=6, r=1e4, threshold=0.5, reset=0.0):
    return nir.IF(np.full(units, r), np.full(units, threshold), np.full(units, reset))


def leaky(units=6, tau=4e-4, r=4.0, threshold=0.5, leak=0.0):
    return nir.LIF(*(np.full(units, one) for one in (tau, r, leak, threshold)))


def saved(tmp_path, *nodes, shape=(8,), edges=None, names=None):
    """Write a chain of nodes, or a graph with given edges."""
    names = names or [f"n{at}" for at in range(len(nodes))]
    every = {
        "input": nir.Input(np.array(shape)),
        **dict(zip(names, nodes, strict=True)),
        "output": nir.Output(np.array([1])),
    }
    order = list(every)
    graph = nir.NIRGraph(every, edges or list(zip(order, order[1:])), type_check=False)  # noqa: B905, RUF007
    path = tmp_path / "theirs.nir"
    nir.write(path, graph)
    return path


def run_both(path, x, steps=5, dt=None):
    """Return what the network read and numpy make of a file."""
    ran = run_nir(nir.read(path, type_check=False), x.expand(steps, *x.shape).numpy(), dt=dt)
    with torch.no_grad():
        return read_nir(path, steps, dt)(x), torch.from_numpy(ran.output)


@pytest.mark.parametrize(
    "nodes",
    [
        lambda: (affine(), integrate(), affine(6, 3)),
        lambda: (nir.Linear(draw(6, 8)), leaky(), affine(6, 3), integrate(3)),
        lambda: (affine(), nir.Scale(draw(6)), leaky(r=2.0), nir.Scale(draw(6))),
        lambda: (affine(), integrate(r=1.0)),  # as sinabs and Norse write a gain of 1
        lambda: (affine(), integrate(r=2e4)),
        lambda: (affine(), leaky(1, tau=math.inf, r=math.inf)),  # as snnTorch writes a leak of 1
        lambda: (affine(), leaky(1)),
        lambda: (affine(), integrate(), affine(6, 3), nir.LI(np.full(3, 5e-4), np.full(3, 2.0), np.zeros(3))),
        lambda: (affine(), integrate(), affine(6, 3), nir.I(np.full(3, 5e3))),
    ],
)
def test_chains_of_others_run_as_nir_defines_them(nodes, tmp_path):
    x = images(shape=(8,), rows=50)
    ours, numpys = run_both(saved(tmp_path, *nodes()), x)
    torch.testing.assert_close(ours, numpys)
    assert (numpys != 0).double().mean() > 0.01


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_convolutions_and_pooling_of_others_are_understood(padding, groups, tmp_path):
    first = nir.Conv2d((9, 8), draw(4, 2 // groups, 3, 3), 1, padding, 1, groups, draw(4))
    pool = nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    sums = nir.SumPool2d(np.array([2, 2]), np.array([1, 2]), np.array([1, 0]))
    neuron = integrate(1)
    path = saved(tmp_path, first, neuron, pool, sums, nir.Flatten(np.array([4, 5, 2]), 0, -1), shape=(2, 9, 8))
    ours, numpys = run_both(path, images(shape=(2, 9, 8), rows=9))
    torch.testing.assert_close(ours, numpys)
    one = nir.Conv1d(9, draw(4, 2 // groups, 3), 2, padding, 1, groups, draw(4))
    if padding != "same":
        ours, numpys = run_both(saved(tmp_path, one, neuron, shape=(2, 9)), images(shape=(2, 9), rows=9))
        torch.testing.assert_close(ours, numpys)


def test_a_constant_current_by_hand(tmp_path):
    # v grows by 0.3 a step and is above 0.5 at 0.6: a spike every second step. At exactly 0.5 NIR's neurons are silent.
    path = saved(tmp_path, nir.Linear(np.eye(2, dtype=np.float32)), integrate(2), shape=(2,))
    x = torch.tensor([[0.3, 0.25]])
    assert read_nir(path, steps=6)(x).tolist() == [[0.5, pytest.approx(2 / 6)]]
    # λ = 3/4: 0.25, 0.4375, 0.578 fires.
    path = saved(tmp_path, nir.Linear(np.eye(2, dtype=np.float32)), leaky(2), shape=(2,))
    assert read_nir(path, steps=3)(torch.tensor([[0.25, 0.0]])).tolist() == [[pytest.approx(1 / 3), 0.0]]


def circle(weight, bias=None):
    back = nir.Linear(weight) if bias is None else nir.Affine(weight, bias)
    return (affine(), leaky(), back, affine(6, 3)), [
        ("input", "n0"), ("n0", "n1"), ("n1", "n2"), ("n2", "n1"), ("n1", "n3"), ("n3", "output"),
    ]  # fmt: skip


def test_a_circle_of_neurons_and_weights_is_a_recurrent_layer(tmp_path):
    nodes, edges = circle(draw(6, 6) * (1 - np.eye(6, dtype=np.float32)))
    path, x = saved(tmp_path, *nodes, edges=edges), images(shape=(8,), rows=50)
    back = read_nir(path, steps=5)
    assert isinstance(back.layers[1].neuron, RecurrentLIF)
    ours, numpys = run_both(path, x)
    torch.testing.assert_close(ours, numpys)


def branched():
    edges = [("input", "n0"), ("n0", "n1"), ("n0", "n2"), ("n1", "output"), ("n2", "output")]
    return {"nodes": (affine(), integrate(), leaky()), "edges": edges}


def two_chains():
    return {"nodes": (affine(), affine()), "edges": [("input", "n0"), ("n0", "output"), ("n1", "n1")]}


UNREAD = {
    "cuba": ({"nodes": (affine(), nir.CubaLIF(*[np.ones(6)] * 5))}, r"node 'n1' \(CubaLIF\) is not understood"),
    "delay": ({"nodes": (affine(), nir.Delay(np.ones(6)))}, r"node 'n1' \(Delay\) is not understood"),
    "threshold-node": ({"nodes": (affine(), nir.Threshold(np.ones(6)))}, r"node 'n1' \(Threshold\) is not understood"),
    "branch": (branched(), "node 'n0' stands where the graph branches"),
    "lost": (two_chains(), "node 'n1' is not part of the chain"),
    "reset": ({"nodes": (affine(), integrate(reset=-0.1))}, "node 'n1' rests or is reset at other membranes"),
    "rest": ({"nodes": (affine(), leaky(leak=0.1))}, "node 'n1' rests or is reset at other membranes"),
    "short": ({"nodes": (affine(), leaky(tau=1e-5))}, "node 'n1' has a time constant below the step dt = 0.0001"),
    "resistance": ({"nodes": (affine(), integrate(r=-1.0))}, "node 'n1' has a resistance r that is not positive"),
    "threshold": ({"nodes": (affine(), integrate(threshold=-1.0))}, "node 'n1' has a threshold that is not positive"),
    "nan": ({"nodes": (nir.Linear(np.full((6, 8), np.nan)), integrate())}, "node 'n0' holds NaN"),
    "fit": ({"nodes": (affine(7, 6), integrate())}, "do not fit each other"),
    "three": ({"nodes": (nir.Linear(draw(2, 6, 8)), integrate())}, "node 'n0' has weights of shape"),
    "self": (
        dict(zip(("nodes", "edges"), circle(np.eye(6, dtype=np.float32)), strict=True)),
        "node 'n2' has a bias, or",
    ),
    "back-bias": (
        dict(zip(("nodes", "edges"), circle(np.zeros((6, 6), np.float32), draw(6)), strict=True)),
        "node 'n2' has a bias, or",
    ),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_what_is_not_understood_is_refused_by_name(kind, tmp_path):
    given, message = UNREAD[kind]
    with pytest.raises(InputError, match=message):
        read_nir(saved(tmp_path, *given["nodes"], edges=given.get("edges")), steps=3)


def test_steps_must_be_known(tmp_path):
    path = saved(tmp_path, affine(), integrate())
    with pytest.raises(UsageError, match="does not say for how many time steps it runs; pass steps"):
        read_nir(path)
    assert read_nir(path, steps=3).steps == 3
    with pytest.raises(UsageError, match="steps must be at least 1"):
        read_nir(path, steps=0)
    with pytest.raises(UsageError, match="dt must be positive"):
        read_nir(path, steps=1, dt=0)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "net.nir"
    write_nir(network(nn.Flatten(), nn.Linear(288, 24), neurons(0.8), nn.Linear(24, 3)), images(rows=3), path)
    return path


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file_is_one_file_error(share, written):
    content = written.read_bytes()
    written.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FileError, match=r"is not a NIR file, or it is truncated|cannot read"):
        read_nir(written)


def test_damaged_bytes_never_escape(written):
    content, source = written.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        for at in source.integers(0, len(content), 40):
            damaged[at] = source.integers(0, 256)
        written.write_bytes(bytes(damaged))
        try:
            read_nir(written)
        except (FileError, InputError, UsageError):
            continue


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x1f\x8bgarbage", b"\x89HDF\r\n\x1a\n" + bytes(2000)])
def test_garbage_is_one_file_error(content, tmp_path):
    path = tmp_path / "net.nir"
    path.write_bytes(content)
    with pytest.raises(FileError):
        read_nir(path, steps=2)
    with pytest.raises(FileError, match="cannot read NIR file"):
        read_nir(tmp_path / "missing.nir")


def hdf5(tmp_path, fill):
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        fill(file)
    path = tmp_path / "net.nir"
    path.write_bytes(stream.getvalue())
    return path


def test_a_file_that_reaches_outside_itself_is_refused(tmp_path, written):
    def links(file):
        file["node"] = h5py.ExternalLink(str(written), "/node")

    with pytest.raises(FileError, match="'node' is a link"):
        read_nir(hdf5(tmp_path, links), steps=2)

    def outside(file):
        file.create_dataset("node", (4,), "u1", external=[(str(written), 0, 4)])

    with pytest.raises(FileError, match="'node' lies in another file"):
        read_nir(hdf5(tmp_path, outside), steps=2)


def test_a_small_file_that_declares_huge_arrays_is_refused(tmp_path):
    def huge(file):
        file.create_dataset("node/weight", (10**6, 10**6), "f4", chunks=(1000, 1000), compression="gzip")

    with pytest.raises(FileError, match="take more than 2 GiB"):
        read_nir(hdf5(tmp_path, huge), steps=2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stalwart", 9),
        ("steps", 0),
        ("wait", 7),
        ("dt", -1.0),
        ("encoder", "[]"),
        ("encoder", "{"),
        ("encoder", '{"name": "x"}'),
    ],
)
def test_damaged_metadata_are_a_file_error(key, value, written):
    with h5py.File(written, "a") as file:
        del file["node/metadata"][key]
        file["node/metadata"][key] = value
    with pytest.raises(FileError, match="metadata of|none of a network"):
        read_nir(written)


def test_thresholds_come_back_to_the_last_bit(written):
    (layer,) = (layer for layer in read_nir(written).modules() if isinstance(layer, InTime))
    assert layer.neuron.threshold.item() == torch.tensor(0.4).item()
    assert layer.neuron.leak.item() == torch.tensor(0.8).item()
