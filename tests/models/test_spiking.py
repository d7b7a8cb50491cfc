"""Architectures with neurons: weights repeat, options are checked, gradients reach the input, noise is seen."""

import pytest
import torch

from stalwart.core.errors import UsageError
from stalwart.models import build_model
from stalwart.models.spiking import Spiking
from stalwart.spiking import LIF, neurons
from stalwart.stochastic import is_random

IMAGES = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["small-cnn", "strided-cnn", "mlp", "vgg5", "resnet18"])
def test_every_kind_of_architecture_spikes(name):
    model = build_model(name, (1, 12, 12), 4, spiking=Spiking(steps=3)).eval()
    x = IMAGES.clone().requires_grad_()
    logits = model(x)
    assert logits.shape == (3, 4)
    assert all(isinstance(layer, LIF) for layer in neurons(model).values())
    assert not any(isinstance(module, torch.nn.ReLU) for module in model.modules())
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    assert gradient.abs().sum() > 0


def test_weights_repeat():
    one, two = (build_model("small-cnn", (1, 12, 12), 4, seed=3, spiking=Spiking()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_poisson_coding_makes_a_model_random():
    model = build_model(
        "mlp", (1, 12, 12), 4, spiking=Spiking(steps=5, encoder={"name": "poisson", "rate": 0.9})
    ).eval()
    assert is_random(model)
    assert not torch.equal(model(IMAGES), model(IMAGES))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"steps": 0}, "at least 1 time step"),
        ({"threshold": -1.0}, "threshold of neurons must be positive"),
        ({"encoder": {"name": "poison"}}, "Did you mean 'poisson'"),
        ({"encoder": {"name": "direct", "speed": 2}}, "encoder 'direct': .*speed"),
        ({"surrogate": {"name": "spline"}}, "unknown surrogate 'spline'"),
        ({"gain": 0.0}, "gain must be positive"),
    ],
)
def test_impossible_options_are_refused(options, what):
    with pytest.raises(UsageError, match=what):
        Spiking(**options)
