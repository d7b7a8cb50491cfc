"""What NIR cannot say is refused by its module path, and a graph that computes something else is never written."""

import sys

import numpy as np
import pytest
import torch
from nir_networks import STEPS, images, network, neurons, nir
from torch import nn

from stalwart.core.errors import InputError, UsageError
from stalwart.interchange import nir_export, run_nir, write_nir
from stalwart.models.classifier import Normalise
from stalwart.spiking import LIF, Direct, InTime, OffsetIF, SpikingNetwork, make_encoder
from stalwart.spiking.recurrent import AdaptiveLIF, RecurrentLIF

FLAT = nn.Flatten()


def dense(layer, units=24):
    return FLAT, nn.Linear(288, 24), layer, nn.Linear(units, 3)


REFUSED = {
    "reset-none": (dense(neurons(reset="none")), "'layers.2' has no reset"),
    "fire-first": (dense(neurons(order="fire_first")), "'layers.2' decides a spike before"),
    "recurrent-reset": (dense(InTime(RecurrentLIF(24, 5, reset="none"), STEPS), 5), "'layers.2' has no reset"),
    "adaptive": (dense(InTime(AdaptiveLIF(24, 5), STEPS), 5), r"'layers.2' \(AdaptiveLIF\) has no counterpart"),
    "offset": (dense(InTime(OffsetIF(2), STEPS)), r"'layers.2' \(OffsetIF\) has no counterpart"),
    "max-pool": ((nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), neurons()), r"'layers.1' \(MaxPool2d\) has no counterpart"),
    "nested": ((nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()), neurons()), r"'layers.0.1' \(ReLU\) has no counterpart"),
    "norm-first": (
        (nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3), neurons()),
        r"'layers.0' \(BatchNorm2d\) has no linear layer",
    ),
    "norm-behind-neurons": (
        (nn.Conv2d(2, 4, 3), neurons(), nn.BatchNorm2d(4)),
        r"'layers.2' \(BatchNorm2d\) has no linear",
    ),
    "norm-of-batch": (
        (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), neurons()),
        "'layers.1' uses the statistics of each batch",
    ),
    "padding-mode": (
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), neurons()),
        "'layers.0' pads by 'reflect'",
    ),
    "oblong": ((nn.Conv2d(2, 4, (1, 3)), neurons()), r"'layers.0' has a \(1, 3\) window"),
    "one-sided": ((nn.Conv2d(2, 4, 4, padding="same"), neurons()), "'layers.0' pads one side more"),
    "ceil": ((nn.AvgPool2d(5, ceil_mode=True), nn.Conv2d(2, 4, 1), neurons()), "'layers.0' divides border windows"),
    "count": ((nn.AvgPool2d(2, padding=1, count_include_pad=False), neurons()), "'layers.0' divides border windows"),
    "adaptive-pool": ((nn.AdaptiveAvgPool2d(5), nn.Conv2d(2, 4, 1), neurons()), "'layers.0' pools .* of unequal size"),
    "batch-flattened": ((nn.Conv2d(2, 4, 3), neurons(), nn.Flatten(0)), "'layers.2' flattens the batch"),
    "matrix": ((nn.Linear(12, 5), neurons()), r"'layers.0' \(Linear\) sees samples of shape \[2, 12, 12\]"),
    "lonely-bias": ((neurons(extras={"bias": ()}), FLAT, nn.Linear(288, 3)), "no weights before 'layers.0'"),
    "uneven-bias": (
        (nn.Conv2d(2, 4, 3), neurons(extras={"bias": (4, 10, 10)}), FLAT, nn.Linear(400, 3)),
        "no weights before 'layers.1'",
    ),
    "worthless": (dense(neurons(extras={"height": ()})), "'layers.2' has spikes worth 0"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_nir_lacks_is_refused_by_module_path(kind, tmp_path):
    layers, message = REFUSED[kind]
    ours = network(*layers)
    for layer in ours.modules():
        if isinstance(layer, LIF) and layer.bias is not None:
            layer.fill(bias=torch.rand(layer.bias.shape))
        if kind == "worthless" and isinstance(layer, LIF):
            layer.fill(height=torch.tensor(0.0))
    with pytest.raises(InputError, match=message):
        write_nir(ours, images(rows=4), tmp_path / "net.nir")
    assert not list(tmp_path.iterdir())


def test_what_is_no_single_spiking_network_is_refused(tmp_path):
    ann = nn.Sequential(nn.Flatten(), nn.Linear(288, 3))
    with pytest.raises(InputError, match="this Sequential has 0"):
        write_nir(ann, images(), tmp_path / "net.nir")
    coded = network(FLAT, nn.Linear(288, 3), neurons(), encoder=make_encoder("latency", STEPS))
    with pytest.raises(InputError, match="'0' stands before the encoder Latency"):
        write_nir(nn.Sequential(Normalise((0.5, 0.5), (1.0, 1.0)), coded), images(), tmp_path / "net.nir")


class Twice(nn.Module):
    def forward(self, x):
        return torch.stack([2 * x] * STEPS)


def test_an_encoder_without_a_name_is_refused(tmp_path):
    ours = network(FLAT, nn.Linear(288, 3), neurons(), encoder=Twice())
    with pytest.raises(InputError, match="the encoder Twice has no name"):
        write_nir(ours, images(), tmp_path / "net.nir")


def change(name, value):
    """Let graphs be built with an attribute of their only affine node changed."""

    def built(parts, shape, metadata):
        graph = nir_export_build(parts, shape, metadata)
        value(graph.nodes[name])
        return graph

    return built


nir_export_build = nir_export.build_graph


def wrong_weight(node):
    node.weight = node.weight.copy()
    node.weight[0, :50] += 0.05


def wrong_bias(node):
    node.bias = node.bias + 0.01


def wrong_threshold(node):
    node.v_threshold = node.v_threshold * 1.01


def wrong_constant(node):
    node.tau = node.tau * 1.05


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        (
            "layers.1",
            wrong_weight,
            r"node 'layers.2' sends \d+ spikes on the example, the network \d+, and \d+ decisions",
        ),
        ("layers.2", wrong_threshold, "node 'layers.2' sends"),
        ("layers.2", wrong_constant, "node 'layers.2' sends"),
        ("layers.3", wrong_bias, "outputs differ by"),
    ],
)
def test_a_graph_that_computes_something_else_is_not_written(name, how, message, tmp_path, monkeypatch):
    path = tmp_path / "net.nir"
    path.write_bytes(b"old")
    monkeypatch.setattr(nir_export, "build_graph", change(name, how))
    with pytest.raises(InputError, match=message):
        write_nir(network(*dense(neurons(0.8))), images(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_one_wrong_weight_between_a_thousand_is_found(tmp_path, monkeypatch):
    def one(node):
        node.weight = node.weight.copy()
        node.weight[3, 7] += 0.1

    monkeypatch.setattr(nir_export, "build_graph", change("layers.1", one))
    with pytest.raises(InputError, match="computes something else"):
        write_nir(network(*dense(neurons(0.8))), images(), tmp_path / "net.nir")


def test_a_membrane_at_its_threshold_is_no_reason_to_refuse(tmp_path, monkeypatch):
    # 3 x 0.1 is above or below 0.3 in float32 as the sum is rounded; batch norm is folded, so that roundings differ.
    layers = nn.Linear(4, 32, bias=False), nn.BatchNorm1d(32), neurons(1.0, 0.3), nn.Linear(32, 3)
    ours = SpikingNetwork(Direct(STEPS), nn.Sequential(*layers), STEPS).eval()
    with torch.no_grad():
        layers[0].weight.fill_(1.0)
        layers[1].running_var.copy_(torch.linspace(0.5, 3, 32))
        layers[1].weight.copy_((layers[1].running_var + layers[1].eps).sqrt())
    x, followed = torch.full((3, 4), 0.025), []

    def counted(*args, follow=None, **options):
        followed.append(follow is not None)
        return run_nir(*args, follow=follow, **options)

    monkeypatch.setattr(nir_export, "run_nir", counted)
    assert write_nir(ours, x, tmp_path / "net.nir") <= 1e-4
    assert followed == [False, True]  # numpy alone went another way


def test_only_the_layers_that_change_are_refused_after_training(tmp_path):
    ours = network(*dense(InTime(LIF(0.9, 0.4, trained=("leak", "threshold"), reset="hard"), STEPS)))
    with torch.no_grad():
        ours.layers[2].neuron.leak.fill_(1.2)  # works as 1
    write_nir(ours, images(), tmp_path / "net.nir")
    assert isinstance(nir.read(tmp_path / "net.nir").nodes["layers.2"], nir.IF)


def test_options_are_checked(tmp_path):
    ours, path = network(*dense(neurons())), tmp_path / "net.nir"
    with pytest.raises(UsageError, match="allow_lossy can name soft-reset and initial, not membranes"):
        write_nir(ours, images(), path, allow_lossy=("membranes",))
    for dt in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(UsageError, match="dt must be positive"):
            write_nir(ours, images(), path, dt=float(dt))
    with pytest.raises(UsageError, match="at least one"):
        write_nir(ours, images(rows=0), path)


def test_without_the_extra_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(UsageError, match=r"pip install 'stalwart\[nir\]'"):
        write_nir(network(*dense(neurons())), images(), tmp_path / "net.nir")
