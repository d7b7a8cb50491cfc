"""Files of ours in other tools, and theirs here, wherever the conventions agree.

Norse looks at no r, so that of its neurons only IF ones agree; snnTorch asks for r = 1 of IF neurons, so that of its only LIF
ones do; SpikingJelly agrees on both. sinabs subtracts thresholds and lets a neuron send several spikes a step; its networks
are read, but only neurons that never get more than their threshold behave alike.
"""

import contextlib
import logging

import pytest
import torch
from nir_networks import STEPS, assert_same, images, network, neurons, nir
from torch import nn

from stalwart.interchange import read_nir, write_nir

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quiet")]


@pytest.fixture
def quiet():
    """Let peers log what they like."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def peer(name):
    """Import a peer, or skip."""
    pytest.importorskip("nirtorch", reason="nirtorch is not installed")
    with contextlib.suppress(Exception):
        return __import__(name, fromlist=["_"])
    return pytest.skip(f"{name.partition('.')[0]} is not installed, or does not import here")


def stack(leak, kind):
    if kind == "conv":
        return network(
            nn.Conv2d(2, 3, 3), neurons(leak), nn.Conv2d(3, 2, 3), neurons(leak), nn.Flatten(), nn.Linear(128, 3)
        )
    return network(nn.Flatten(), nn.Linear(288, 24), neurons(leak), nn.Linear(24, 8), neurons(leak))


def in_steps(model, x):
    """Return the mean over steps of a model that hands on its state."""
    state, outputs = None, []
    with torch.no_grad():
        for _ in range(STEPS):
            y, state = model(x, state)
            outputs.append(y)
    return torch.stack(outputs).mean(0)


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_norse_fires_as_we_do(kind, tmp_path):
    norse = peer("norse.torch.utils.import_nir")
    ours, x = stack(1.0, kind), images(rows=30)
    write_nir(ours, x, tmp_path / "net.nir")
    model = norse.from_nir(nir.read(tmp_path / "net.nir"), ignore_warnings=True, dt=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(in_steps(model, x), ours(x))


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_snntorch_fires_as_we_do(kind, tmp_path):
    snntorch = peer("snntorch.import_nir")
    ours, x = stack(0.75, kind), images(rows=30)
    write_nir(ours, x, tmp_path / "net.nir")
    model = snntorch.import_from_nir(nir.read(tmp_path / "net.nir"))
    with torch.no_grad():
        torch.testing.assert_close(in_steps(model, x), ours(x))


@pytest.mark.parametrize("leak", [1.0, 0.75])
@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_spikingjelly_fires_as_we_do(kind, leak, tmp_path):
    jelly = peer("spikingjelly.activation_based.nir_exchange")
    ours, x = stack(leak, kind), images(rows=30)
    write_nir(ours, x, tmp_path / "net.nir")
    with torch.no_grad():
        torch.testing.assert_close(in_steps(jelly.import_from_nir(nir.read(tmp_path / "net.nir")), x), ours(x))


@pytest.mark.parametrize("leak", [1.0, 0.75])
def test_networks_of_spikingjelly_fire_here_as_there(leak, tmp_path):
    jelly = peer("spikingjelly.activation_based.nir_exchange")
    ours, x = stack(leak, "conv"), images(rows=30)
    write_nir(ours, x, tmp_path / "ours.nir")
    neuron = peer("spikingjelly.activation_based.neuron")
    layers = [
        layer if not hasattr(layer, "neuron") else neuron.IFNode(0.4) if leak == 1 else neuron.LIFNode(4.0, False, 0.4)
        for layer in ours.layers
    ]
    jelly.export_to_nir(nn.Sequential(*layers), x, tmp_path / "theirs.nir")
    assert_same(ours, read_nir(tmp_path / "theirs.nir", steps=STEPS), x)


def test_networks_of_snntorch_fire_here_as_there(tmp_path):
    snntorch = peer("snntorch.export_nir")
    leaky = peer("snntorch").Leaky
    ours, x = stack(0.75, "dense"), images(rows=30)
    sizes = iter((24, 8))

    def theirs():
        size = next(sizes)
        return leaky(torch.full((size,), 0.75), torch.full((size,), 0.4), init_hidden=True)

    layers = [theirs() if hasattr(layer, "neuron") else layer for layer in ours.layers]
    graph = snntorch.export_to_nir(nn.Sequential(*layers), x[:1], ignore_dims=[0])
    nir.write(tmp_path / "theirs.nir", graph)
    assert_same(ours, read_nir(tmp_path / "theirs.nir", steps=STEPS), x)
