"""Parametric noise injection: the equations, and that it shares the weights of the layers it replaces."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stalwart.core.errors import UsageError
from stalwart.core.random import generator
from stalwart.stochastic import PNIConv2d, PNILinear, inject, noise
from stalwart.stochastic.pni import strengths


def plain():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding="same", dilation=2, bias=False), nn.Flatten(), nn.Linear(36, 3)),
    )


def test_the_derivatives_treat_noise_and_std_as_constants():
    torch.manual_seed(0)
    layer = PNILinear(nn.Linear(4, 3), alpha=0.3)
    x, c = torch.randn(5, 4), torch.randn(5, 3)
    with noise(layer, "fixed", seed=1):
        noisy = layer.noisy().detach()
        (layer(x) * c).sum().backward()
    eta = (noisy - layer.weight.detach()) / 0.3
    outer = c.T @ x  # d loss / d w~ of a linear layer
    assert torch.allclose(layer.weight.grad, outer, atol=1e-5), "a gradient through std(w) would add to this"
    assert torch.allclose(layer.alpha.grad, (eta * outer).sum(), rtol=1e-4)
    assert torch.allclose(layer.bias.grad, c.sum(0), atol=1e-5)


def test_the_noise_has_the_std_of_the_weights():
    torch.manual_seed(0)
    linear = nn.Linear(60, 50)
    values = linear.weight.detach().double().flatten()
    std = ((values - values.mean()).square().sum() / (len(values) - 1)).sqrt()
    layer = PNILinear(linear, alpha=0.25)
    with noise(layer, seed=0), torch.no_grad():
        drawn = torch.stack([layer.noisy() - layer.weight for _ in range(20)]).double()
    assert float(drawn.std() / (0.25 * std)) == pytest.approx(1.0, abs=0.02)
    assert float(drawn.mean().abs() / std) < 0.01


def test_injected_layers_share_weights_and_count_one_strength_each():
    model = plain()
    parameters = dict(model.named_parameters())
    x = torch.randn(3, 2, 6, 6, generator=generator(0))
    with torch.no_grad():
        before = model(x)
    assert inject(model, alpha=0.1) is model
    kept = dict(model.named_parameters())
    assert all(kept[name] is parameter for name, parameter in parameters.items())
    assert [float(alpha.detach()) for alpha in strengths(model)] == pytest.approx([0.1] * 3)
    assert set(kept) - set(parameters) == {"0.alpha", "2.0.alpha", "2.2.alpha"}
    with noise(model, "off"), torch.no_grad():
        assert torch.equal(model(x), before), "without its noise it is the plain network"
    assert not torch.allclose(model(x), before)


def test_a_noisy_convolution_is_the_convolution_with_the_noisy_weights():
    model = inject(plain())
    layer = model[0]
    x = torch.randn(3, 2, 6, 6, generator=generator(0))
    with noise(model, "fixed", seed=0):
        expected = F.conv2d(x, layer.noisy(), layer.bias, stride=2, padding=1, groups=2)
        assert torch.equal(layer(x), expected)


def test_weights_of_the_plain_network_can_be_loaded_first():
    source, target = plain(), inject(plain())
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    missing = target.load_state_dict(source.state_dict(), strict=False)
    assert sorted(missing.missing_keys) == ["0.alpha", "2.0.alpha", "2.2.alpha"]
    assert not missing.unexpected_keys


def test_a_model_without_layers_to_noise_is_refused():
    with pytest.raises(UsageError, match="holds no nn.Linear or nn.Conv2d"):
        inject(nn.Sequential(nn.ReLU()))


def test_an_unknown_padding_is_refused_and_nothing_is_replaced_silently():
    with pytest.raises(UsageError, match="padding_mode='reflect'"):
        PNIConv2d(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))


def test_a_copy_has_its_own_weights():
    model = inject(plain())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.zero_()
    assert model[0].weight.abs().max() > 0
