"""Weights for interval bounds: their distribution, their seed, what stays."""

import math

import pytest
import torch
from torch import nn

from stalwart.core.errors import UsageError
from stalwart.models import build_model
from stalwart.models.initialise import ibp_initialise


def test_the_standard_deviation_of_each_layer():
    model = ibp_initialise(build_model("dm-medium", (1, 28, 28), 10))
    plain = build_model("dm-medium", (1, 28, 28), 10)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer, fan_in in zip(layers[:-1], (9, 32 * 16, 32 * 9, 64 * 16, 4096, 512), strict=True):
        weight, count = layer.weight.detach(), layer.weight.numel()
        std = math.sqrt(2 * math.pi) / fan_in
        assert float(weight.std()) == pytest.approx(std, rel=4 / math.sqrt(2 * count))
        assert abs(float(weight.mean())) < 4 * std / math.sqrt(count)
    assert torch.equal(model.head.weight, plain.head.weight)
    kept = {name: p for name, p in plain.named_parameters() if name.endswith("bias")}
    assert all(torch.equal(dict(model.named_parameters())[name], p) for name, p in kept.items())


def test_a_box_keeps_its_width_through_a_wide_layer():
    """A linear layer multiplies radii by Σ|w|, which is 2 here; ReLU then halves those of about half of the neurons."""
    layer = nn.Linear(2000, 500)
    ibp_initialise(nn.Sequential(layer, nn.Linear(500, 2)))
    assert float(layer.weight.detach().abs().sum(1).mean()) == pytest.approx(2.0, rel=0.02)


def test_the_seed_decides():
    one, same, other = (ibp_initialise(build_model("mlp", (8,), 3), seed).backbone[1].weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    state = torch.get_rng_state()
    ibp_initialise(build_model("mlp", (8,), 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_without_layers_is_refused():
    with pytest.raises(UsageError, match="needs linear or convolutional layers"):
        ibp_initialise(nn.Flatten())
