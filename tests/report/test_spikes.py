"""The spikes of a run: in the record, on the page, and absent where there are no neurons."""

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.attacks.surrogate_ensemble import MEMBERS
from stalwart.core.random import generator
from stalwart.report import Report, watch_spikes
from stalwart.report.html import render
from stalwart.spiking import LIF, Direct, HoyerNeuron, SpikingNetwork, find_surrogate, neurons, with_neurons

X = torch.rand(20, 1, 4, 4, generator=generator(0))
Y = torch.arange(20) % 3


def network(steps=6, neuron=lambda path: LIF(0.9, 0.5)):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU())
    return nn.Sequential(
        SpikingNetwork(Direct(steps), with_neurons(layers, steps, neuron), steps), nn.Linear(6, 3)
    ).eval()


def test_what_is_recorded_is_what_the_network_does():
    model = network()
    with torch.no_grad():
        accuracy = float((model(X).argmax(1) == Y).float().mean())
        first = model[0].layers[2].neuron(model[0].layers[:2](X).expand(6, 20, 8))
    found = watch_spikes(model, X, Y)
    assert [layer.layer for layer in found.layers] == ["0.layers.2.neuron", "0.layers.4.neuron"]
    assert found.layers[0].rate == pytest.approx(float(first.mean()))
    assert [point.steps for point in found.over_steps] == [1, 2, 3, 4, 6]
    assert found.over_steps[-1].accuracy.value == pytest.approx(accuracy)
    trace = found.traces[0]
    fired = sorted((first[:, 0, n].nonzero()[:, 0] + 1).tolist() for n in range(8))
    assert sorted(trace.spikes) == fired
    assert all((u >= 0.5) == (t + 1 in trace.spikes[0]) for t, u in enumerate(trace.membranes[0]))
    assert found.macs == 16 * 8 + 18


def test_the_page_shows_them(tmp_path):
    report = sw.evaluate(network(), (X, Y), within=sw.Linf(0.1), suite="quick")
    page = render(report)
    for words in ("Spikes</h3>", "0.layers.4.neuron", "Silent, %", "accumulates an input", "most active neurons"):
        assert words in page
    report.save(tmp_path)
    assert Report.load(tmp_path) == report
    plain = sw.evaluate(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), (X, Y), within=sw.Linf(0.1), suite="quick")
    assert plain.runs[0].spikes is None
    assert "Silent, %" not in render(plain)


def test_gradients_by_attack():
    model, within = network(), sw.Linf(0.8)
    with torch.no_grad():
        labels = model(X).argmax(1)
    report = sw.evaluate(model, (X, labels), within=within, suite="spiking")
    found = report.runs[0].spikes
    assert found.attacks == ["FGSM", "PGD-10, CE", "PGD-10, margin"]
    assert [row.gradient for row in found.gradients] == ["own", *MEMBERS]
    own = sw.attack("pgd", steps=10, loss="margin")(model, X, labels, within=within, seed=0)
    assert found.gradients[0].left[2] == pytest.approx(float((~own.success).float().mean()))
    other = sw.attack("pgd", steps=10, surrogate={"name": "triangle", "gamma": 0.25})(
        model, X, labels, within=within, seed=0
    )
    assert found.gradients[1].left[1] == pytest.approx(float((~other.success).float().mean()))
    assert 0 < found.gradients[0].left[1] < found.gradients[1].left[1] < 1
    assert 'class="heat"' in render(report)


def test_neurons_that_cannot_stop_on_the_way_have_no_curve():
    found = watch_spikes(network(1, lambda path: HoyerNeuron()), X, Y)
    assert found.over_steps == []
    assert found.traces == []
    assert len(found.layers) == 2


@pytest.mark.parametrize("method", ["calibration", "offset-spikes"])
def test_converted_networks_are_watched_as_they_are(method):
    torch.manual_seed(0)
    x = torch.rand(20, 1, 4, 4, generator=generator(0))
    ann = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    network = sw.convert(ann, x, steps=5, method=method)
    found = watch_spikes(network, x, ann(x).argmax(1))
    (layer,) = neurons(network).values()
    caught = []
    hook = layer.register_forward_hook(lambda module, inputs, out: caught.append((inputs[0], out)))
    network(x[:1])
    hook.remove()
    currents, out = caught[0]
    membranes = layer.membranes(currents)
    assert torch.equal(membranes >= layer.threshold, out > 0), "membranes are those that decided"
    for width, share in ((1e-6, 0.0), (1e6, 1.0)):
        layer.surrogate = find_surrogate({"name": "rectangle", "gamma": width})
        assert watch_spikes(network, x, ann(x).argmax(1)).layers[0].passing == pytest.approx(share, abs=0.02)
    (trace,) = found.traces
    assert sum(map(len, trace.spikes)) == int((out > 0).sum())
    assert (found.over_steps == []) == (method == "offset-spikes")
