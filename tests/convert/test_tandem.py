"""Progressive tandem learning: spikes forward, the activation's gradient back, and layers that stay frozen."""

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.convert import Tandem
from stalwart.convert.rate import Rate
from stalwart.convert.tandem import _Stage
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.data import load
from stalwart.models.resnet import BasicBlock
from stalwart.spiking import LIF, InTime, SpikingNetwork

X = torch.rand(40, 1, 6, 6, generator=generator(0))
Y = (X.flatten(1)[:, :18].sum(1) > X.flatten(1)[:, 18:].sum(1)).long()


def ann(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 12), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(12, 2)).eval()


def test_the_gradient_is_that_of_the_activation_at_the_spikes():
    chain = [nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)]
    neuron = Rate().neurons(chain[1], (7,))
    neuron.fill(threshold=torch.tensor(0.6), height=torch.tensor(0.6))
    chain[1] = InTime(neuron, 4)
    work = Rate().neurons(chain[3], (6,))
    work.fill(threshold=torch.tensor(0.4), height=torch.tensor(0.4))
    x = torch.rand(8, 5, generator=generator(1))
    stage = _Stage(chain, 3, 4)
    logits = stage(x, work)
    spikes = neuron(chain[0](x).expand(4, 8, 7)).detach()
    sent = work(chain[2](spikes.flatten(0, 1)).unflatten(0, (4, 8))).mean(0)
    assert torch.allclose(logits, chain[4](sent), atol=1e-6)
    (found,) = torch.autograd.grad(logits.sum(), chain[2].weight)
    mean, slope = spikes.mean(0), (chain[2](spikes.mean(0)) > 0).float() * chain[4].weight.sum(0)
    assert torch.allclose(found, slope.T @ mean, atol=1e-5)
    logits = stage(x, work)
    logits.sum().backward()
    assert chain[0].weight.grad is None, "layers in front are frozen"
    assert chain[4].weight.grad is not None


def test_without_training_it_is_the_rate_conversion():
    tandem = Tandem(steps=8, most=1, lr=1e-12)
    model = ann()
    network = tandem(model, (X, Y), (X, Y))
    assert isinstance(network, SpikingNetwork)
    assert sum(isinstance(layer, LIF) for layer in network.modules()) == 2
    first = sw.convert(model, X, steps=8, threshold="percentile")
    ours, theirs = (next(layer for layer in net.modules() if isinstance(layer, LIF)) for net in (network, first))
    assert float(ours.threshold) == pytest.approx(float(theirs.threshold), rel=1e-4)
    with torch.no_grad():
        assert (network(X) - first(X)).abs().max() < 0.3 * first(X).abs().max()


def test_it_trains_and_repeats():
    data = load("digits", {}, 0, None, False, progress=False)
    train, held = data.train.take(400).batch(slice(None)), data.validation.take(200).batch(slice(None))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tandem = Tandem(steps=4, most=25, patience=8, lr=5e-3, batch=50)
    a, b = (tandem(model, train, held) for _ in range(2))
    assert all(
        torch.equal(one, other) for one, other in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert (a(held[0]).argmax(1) == held[1]).float().mean() > 0.8


def test_bad_wishes_are_refused():
    for options in ({"steps": 0}, {"patience": 0}, {"percentile": 0.0}, {"lr": 0.0}, {"weight_decay": -1.0}):
        with pytest.raises(UsageError):
            Tandem(**options)
    with pytest.raises(InputError, match="branches"):
        Tandem()(nn.Sequential(BasicBlock(1, 4, 1), nn.Flatten(), nn.Linear(144, 2)), (X, Y), (X, Y))
    with pytest.raises(UsageError, match="held-out"):
        Tandem()(ann(), (X, Y), (X[:0], Y[:0]))
