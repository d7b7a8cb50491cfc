"""Methods of conversion: spike counts in closed form, thresholds by their definitions, and the ANN's answers in the limit."""

import copy

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.convert import METHODS, compare
from stalwart.convert.activity import order_statistic
from stalwart.convert.rate import Rate
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.models import build_model
from stalwart.spiking import LIF, QCFS, OffsetIF, SpikingNetwork, neurons, set_steps
from stalwart.spiking.qcfs import Quantise

X = torch.rand(64, 1, 8, 8, generator=generator(0))


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def ann():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    ).eval()


def thresholds(network):
    return [layer.threshold.clone() for layer in neurons(network).values()]


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"qcfs", "robust", "balancing"}))
@pytest.mark.parametrize("per", ["layer", "channel"])
def test_many_steps_give_the_anns_answers(method, per):
    if method == "offset-spikes" and per == "channel":
        with pytest.raises(UsageError, match="a layer"):
            sw.convert(ann(), X, method=method, per=per)
        return
    model = ann()
    extra = {"threshold": "max"} if method not in ("local-balancing",) else {"rounds": 200}
    wanted = model(X)
    errors = []
    for steps in (8, 512):
        network = sw.convert(model, X, steps=steps, method=method, per=per, **extra)
        errors.append(float((network(X) - wanted).abs().mean() / wanted.abs().mean()))
    assert errors[1] < 0.02
    assert errors[1] < errors[0]


def test_soft_resets_count_what_a_constant_current_is_worth():
    z = torch.linspace(0, 2, 41)[None, None].expand(12, 1, 41)
    counts = sw.spiking.lif(z, leak=1.0, threshold=0.7)
    assert ((counts.sum(0) - (12 * z[0] / 0.7).clamp(max=12)).abs() <= 1).all()
    hard = sw.spiking.lif(z, leak=1.0, threshold=0.7, reset="hard").sum(0)
    exact = torch.where(z[0] > 0, (12 / (0.7 / z[0].double()).ceil()).floor(), 0.0)
    # Where z divides the threshold the sum of floats decides; leave these out.
    ratio = 0.7 / z[0].clamp_min(1e-9)
    clear = (ratio - ratio.round()).abs() > 1e-4
    assert torch.equal(hard.double()[clear], exact[clear])


def test_an_order_statistic_is_the_kth_value():
    rows = torch.tensor([[5.0, 1.0, 4.0, 2.0, 3.0]])
    assert [float(order_statistic(rows, p)) for p in (1.0, 50.0, 100.0)] == [1.0, 3.0, 5.0]
    network = sw.convert(ann(), X, method="rate", threshold="percentile", percentile=75.0)
    values = ann()[:3](X).flatten()
    assert float(thresholds(network)[0]) == pytest.approx(
        float(values.sort().values[round(0.75 * (len(values) - 1))]), rel=1e-5
    )


def test_the_mse_threshold_is_the_best_of_its_grid():
    values = torch.rand(1, 500, generator=generator(3)) ** 3
    best = Rate(start=0.0)._nearest(values, values.amax(1), 4)

    def error(threshold):
        return float(((values * 4 / threshold).floor().clamp(0, 4) * threshold / 4 - values).square().sum())

    grid = [float(values.max()) * (1 - i / 100) for i in range(95)]
    assert error(float(best)) == pytest.approx(min(map(error, grid)), rel=1e-5)


def test_calibration_meets_the_mean_activation():
    model, steps = ann(), 6
    plain = sw.convert(model, X, steps=steps, method="calibration", correction="none")
    light = sw.convert(model, X, steps=steps, method="calibration", correction="light")
    advanced = sw.convert(model, X, steps=steps, method="calibration", correction="advanced")
    wanted = model[:3](X).mean((0, 2, 3))

    def missing(network):
        caught = []
        hook = next(iter(neurons(network).values())).register_forward_hook(lambda m, i, out: caught.append(out))
        network(X)
        hook.remove()
        return float((caught[0].mean((0, 1, 3, 4)) - wanted).abs().sum())

    assert missing(light) < missing(plain)
    assert missing(advanced) < missing(plain)


def quantised(levels=4):
    torch.manual_seed(0)
    model = build_model("vgg-small", (1, 8, 8), 4)
    Quantise(levels=levels, height=1.5).apply(model)
    return model.eval()


def test_quantised_activations_are_met_exactly_by_as_many_steps():
    activation = QCFS(levels=5, height=1.5)
    z = torch.linspace(-1, 2, 301)
    neuron = LIF(1.0, 1.5, extras={"height": (), "initial": ()})
    neuron.fill(threshold=torch.tensor(1.5), height=torch.tensor(1.5), initial=torch.tensor(0.75))
    spikes = neuron(z[None, None].expand(5, 1, 301))
    at_edge = ((z / 1.5 * 5 + 0.5) - (z / 1.5 * 5 + 0.5).round()).abs() < 1e-4
    assert torch.allclose(spikes.mean(0)[0][~at_edge], activation(z)[~at_edge], atol=1e-6)
    model = quantised()
    network = sw.convert(model, X[:4], steps=4, method="qcfs")
    first = next(iter(neurons(network)))
    activations, outputs = [], []
    model.backbone[2].register_forward_hook(lambda m, i, out: activations.append(out))
    neurons(network)[first].register_forward_hook(lambda m, i, out: outputs.append(out.mean(0)))
    model(X), network(X)
    # Folding batch norm moves currents by a rounding, which a few levels feel.
    assert ((activations[0] - outputs[0]).abs() > 1e-4).float().mean() < 1e-3


def test_offset_neurons_move_by_the_spike_that_is_wrong():
    neuron = OffsetIF(look=4, threshold=1.0)
    # One large current first, then negative ones: a spike too many, and the membrane ends below 0.
    many = torch.tensor([1.5, -0.6, -0.6, -0.6, 1.5, -0.6, -0.6, -0.6])[:, None, None]
    assert neuron(many).flatten().tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    # All current in the last step: too few, for the membrane still holds a spike.
    few = torch.tensor([0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 3.0])[:, None, None]
    assert neuron(few).flatten().tolist() == [0, 0, 0, 1, 1, 0, 0, 1]
    with pytest.raises(InputError, match="too few"):
        neuron(many[:4])
    with pytest.raises(InputError, match="period"):
        neuron.resume(many, None)
    network = sw.convert(ann(), X, steps=5, method="offset-spikes", look=3)
    assert (network.steps, network.wait) == (8, 3)


def test_robust_conversion_balances_on_real_spikes_and_clears_statistics():
    model = ann()
    options = {"balancing_steps": 12, "batches": 2, "batch": 32}
    network = sw.convert(model, X, steps=5, method="robust", **options)
    norm = network.layers[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert torch.equal(norm.running_mean, torch.zeros(8))
    assert torch.equal(norm.running_var, torch.ones(8))
    assert network.steps == 5
    # The first layer sees the same currents in every step: its threshold is a percentile of batch-normalised ones.
    values = []
    for part in X.split(32):
        currents = nn.functional.batch_norm(model[0](part), None, None, model[1].weight, model[1].bias, training=True)
        values.append(float(order_statistic(currents.flatten()[None], 99.7)))
    assert float(thresholds(network)[0]) == pytest.approx(0.3 * max(values), rel=1e-4)
    higher = sw.convert(model, X, steps=5, method="robust", rho=0.6, **options)
    assert float(thresholds(higher)[0]) == pytest.approx(2 * float(thresholds(network)[0]), rel=1e-5)
    for name, value in ann().state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_deeper_thresholds_depend_on_the_layers_before_them():
    model, options = ann(), {"balancing_steps": 12, "batches": 1, "batch": 32}
    before = thresholds(sw.convert(model, X, method="robust", **options))
    more = thresholds(sw.convert(model, X, method="robust", percentile=90.0, **options))
    assert before[0] > more[0]
    assert before[1] != more[1]
    straight = ann()
    straight[0].weight.mul_(3.0)  # batch norm takes it back: the same currents, the same thresholds
    straight[0].bias.mul_(3.0)
    assert torch.allclose(
        torch.stack(thresholds(sw.convert(straight, X, method="robust", **options))), torch.stack(before), rtol=1e-3
    )


def test_bad_wishes_are_refused():
    for message, options in (
        ("pass calibration", {"calibration": None}),
        ("no inputs", {"calibration": []}),
        ("unknown method of conversion 'rates'", {"method": "rates"}),
        ("percentile", {"percentile": 0.0}),
        ("start", {"start": 1.0}),
        ("at least 1 time step", {"steps": 0}),
        ("unknown encoder", {"encoder": "binary"}),
        ("QCFS activations", {"method": "qcfs"}),
        ("rho", {"method": "robust", "rho": 0.0}),
    ):
        with pytest.raises((UsageError, InputError), match=message):
            sw.convert(ann(), **{"calibration": X, **options})
    dead = ann()
    dead[0].weight.zero_(), dead[0].bias.fill_(-1.0), dead[1].bias.fill_(-9.0)
    with pytest.raises(InputError, match="'2' is 0 on all inputs"):
        sw.convert(dead, X)


def test_batches_of_a_loader_and_other_encoders():
    batches = [(part, torch.zeros(len(part))) for part in X.split(16)]
    a, b = sw.convert(ann(), batches, steps=4), sw.convert(ann(), X, steps=4)
    assert torch.equal(a(X), b(X))
    poisson = sw.convert(ann(), X, steps=400, encoder={"name": "poisson", "signed": False})
    assert isinstance(poisson, SpikingNetwork)
    with sw.stochastic.noise(poisson, "on", seed=0):
        assert (poisson(X[:8]) - ann()(X[:8])).abs().max() < 0.4 * ann()(X[:8]).abs().max()


def _at_one_step(network):
    other = copy.deepcopy(network)
    set_steps(other, 1)
    return other


def test_a_comparison_says_what_was_done_and_how_near_it_is():
    model = ann()
    labels = model(X).argmax(1)
    network = sw.convert(model, X, steps=8)
    found = compare(model, network, X, labels, over=(1, 64))
    assert found.accuracy == 1.0
    assert list(found.over_steps) == [1, 8, 64]
    assert found.over_steps[64] == pytest.approx(1.0, abs=0.05)
    assert found.over_steps[1] == float((_at_one_step(network)(X).argmax(1) == labels).float().mean())
    assert [one.path for one in found.layers] == ["2", "6"]
    assert all(0 < one.error < 0.5 and 0 < one.rate < 1 for one in found.layers)
    assert found.findings.folded == {"1": "0"}
    text = found.text()
    for part in ("folded    1 into 0", "kept      3 (AvgPool2d)", "accuracy before: 100.0%"):
        assert part in text
    assert found.record()["replaced"][0]["layer"] == "2"
    assert "beware" not in text
    low = sw.convert(model, X, method="robust", balancing_steps=10)
    for layer in neurons(low).values():
        layer.threshold.fill_(layer.floor)
    text = compare(model, low, X).text()
    assert "beware    2 has its threshold at the floor of 0.03" in text
    assert "accuracy" not in text
