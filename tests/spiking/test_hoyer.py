"""One-step neurons: thresholds and measures by hand, surrogate, moving average, and the regulariser in an objective."""

import pytest
import torch
from torch import nn

from stalwart.core.errors import UsageError
from stalwart.core.random import generator
from stalwart.core.registry import build
from stalwart.models import build_model
from stalwart.models.spiking import Spiking
from stalwart.objectives import OBJECTIVES, Moment, Trainee
from stalwart.spiking import HoyerNeuron, gradients, hoyer_measure, hoyer_threshold

U = torch.tensor([[[0.5, -1.0, 1.0, 3.0, 0.25, 2.5]]])


def test_the_threshold_by_hand():
    # c = .5, 0, 1, 1, .25, 1: Σ c² = 3.3125, Σ c = 3.75.
    assert float(hoyer_threshold(U)) == pytest.approx(3.3125 / 3.75)
    assert hoyer_threshold(U[..., :3], channels=True).tolist() == [0.5, 1.0, 1.0]
    assert float(hoyer_threshold(-U.abs())) == 1
    image = torch.rand(1, 2, 3, 4, 4, generator=generator(0))
    by_channel = hoyer_threshold(image, channels=True)
    assert by_channel.shape == (3, 1, 1)
    assert float(by_channel[1]) == pytest.approx(float(hoyer_threshold(image[:, :, 1])))


def test_the_measure_by_hand():
    assert float(hoyer_measure(torch.tensor([3.0, -4.0]))) == pytest.approx(49 / 25)
    assert float(hoyer_measure(torch.tensor([0.0, 5.0, 0.0]))) == 1
    assert float(hoyer_measure(torch.full((7,), -2.0))) == pytest.approx(7)
    assert float(hoyer_measure(torch.zeros(3))) == 0
    z = torch.randn(9, generator=generator(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(hoyer_measure, (z,))


def test_spikes_and_gradients_by_hand():
    neuron = HoyerNeuron(threshold=-2.0)  # |θ| = 2
    u = U.clone().requires_grad_()
    spikes = neuron(u)
    # z = .25, -.5, .5, 1.5, .125, 1.25; c = .25, 0, .5, 1, .125, 1: h = 2.328125 / 2.875 = .81.
    assert spikes.flatten().tolist() == [0, 0, 0, 1, 0, 1]
    spikes.sum().backward()
    assert u.grad.flatten().tolist() == [0.25, 0, 0.25, 0.25, 0.25, 0.25]  # 0.5 / |θ| where 0 < z <= 2
    # dz/dθ = -z / |θ| · sign(θ) = z / 2.
    assert float(neuron.threshold.grad) == pytest.approx(0.5 * (0.25 + 0.5 + 1.5 + 0.125 + 1.25) / 2)
    wide = torch.tensor([[[4.0, 4.1, 0.0]]], requires_grad=True)
    neuron(wide).sum().backward()
    assert wide.grad.flatten().tolist() == [0.25, 0, 0]


def test_evaluation_takes_the_moving_average():
    neuron = HoyerNeuron()
    neuron(U)
    expected = 0.9 + 0.1 * 3.3125 / 3.75
    assert float(neuron.running) == pytest.approx(expected)
    neuron.eval()
    u = torch.tensor([[[expected - 0.01, expected + 0.01, 0.0]]])
    assert neuron(u).flatten().tolist() == [0, 1, 0]
    assert float(neuron.running) == pytest.approx(expected)
    channels = HoyerNeuron(channels=3, momentum=1.0)
    channels(U[..., :3])
    assert channels.running.tolist() == [0.5, 1.0, 1.0]
    channels.eval()
    assert channels(torch.tensor([[[0.6, 0.9, 1.0]]])).flatten().tolist() == [1, 0, 1]


def test_surrogates_are_swapped():
    neuron = HoyerNeuron().eval()
    u = U.clone().requires_grad_()
    with gradients(neuron, "straight-through"):
        (gradient,) = torch.autograd.grad(neuron(u).sum(), u)
    assert (gradient == 1).all()


@pytest.fixture
def model():
    made = build_model("resnet18", (1, 8, 8), 3, spiking=Spiking(steps=1, neuron={"name": "hoyer"}))
    return made.train()


def test_the_objective_adds_the_measure_of_every_layer(model):
    x, y = torch.rand(4, 1, 8, 8, generator=generator(3)), torch.arange(4) % 3
    seen = []
    hooks = [
        layer.register_forward_hook(lambda one, inputs, out: seen.append(inputs[0] / one.threshold.abs()))
        for layer in model.modules()
        if isinstance(layer, HoyerNeuron)
    ]
    loss, _ = build("objective", OBJECTIVES, "hoyer", {"weight": 0.0}).loss(model, x, y, Moment(0))
    expected = sum(float(z.detach().abs().sum() ** 2 / z.detach().square().sum()) for z in seen)
    assert len(seen) == len(hooks) > 5
    for hook in hooks:
        hook.remove()
    found, _ = build("objective", OBJECTIVES, "hoyer", {"weight": 1e-3}).loss(model, x, y, Moment(0))
    assert float(found.detach() - loss.detach()) == pytest.approx(1e-3 * expected, rel=1e-3)
    found.backward()
    assert all(one.threshold.grad is not None for one in model.modules() if isinstance(one, HoyerNeuron))


def test_training_with_it_lowers_the_measure(model):
    x, y = torch.rand(8, 1, 8, 8, generator=generator(3)), torch.arange(8) % 3

    def trained(weight):
        made = build_model("mlp", (1, 8, 8), 3, spiking=Spiking(steps=1, neuron={"name": "hoyer"}))
        trainee = Trainee(made, build("objective", OBJECTIVES, "hoyer", {"weight": weight}))
        optimiser = torch.optim.Adam(made.parameters(), 3e-3)
        for step in range(30):
            optimiser.zero_grad()
            trainee(x, y, Moment(step))[0].backward()
            optimiser.step()
        layers = [one for one in made.modules() if isinstance(one, HoyerNeuron)]
        seen = []
        hooks = [
            one.register_forward_hook(lambda a, inputs, out: seen.append(hoyer_measure(inputs[0]))) for one in layers
        ]
        with torch.no_grad():
            made(x)
        assert len(seen) == len(hooks)
        return float(sum(seen))

    assert trained(1e-3) < 0.8 * trained(0.0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="needs a model with one-step neurons"):
        build("objective", OBJECTIVES, "hoyer", {}).loss(
            nn.Linear(2, 2), torch.ones(1, 2), torch.zeros(1).long(), Moment(0)
        )
    with pytest.raises(UsageError, match="set steps to 1, not 4"):
        Spiking(steps=4, neuron={"name": "hoyer"})
    with pytest.raises(UsageError, match="stand beside 'neuron'"):
        Spiking(neuron={"name": "lif", "leak": 0.5})
    with pytest.raises(UsageError, match="neuron 'rate': .*colour"):
        Spiking(neuron={"name": "rate", "colour": 1})
    with pytest.raises(UsageError, match="unknown neuron 'hoyr'"):
        Spiking(neuron={"name": "hoyr"})
    with pytest.raises(UsageError, match="threshold of neurons must not be 0"):
        HoyerNeuron(0.0)
