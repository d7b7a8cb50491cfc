"""Dropout behind linear layers: there where it is asked for, without influence on anything else."""

import pytest
import torch
from torch import nn

from stalwart.core.errors import UsageError
from stalwart.models import build_model
from stalwart.models.spiking import Spiking
from stalwart.spiking import SharedDropout

NAMES = {"small-cnn": 2, "pooled-cnn": 1, "buchel-cnn": 2, "mlp": 2}
X = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def dropouts(model, kind=nn.Dropout):
    return [module for module in model.modules() if isinstance(module, kind)]


@pytest.mark.parametrize("name", NAMES)
def test_it_stands_behind_each_linear_layer_and_acts_in_training_alone(name):
    plain, dropped = (build_model(name, (1, 12, 12), 3, {"dropout": rate}) for rate in (0, 0.3))
    assert not dropouts(plain)
    assert [module.p for module in dropouts(dropped)] == [0.3] * NAMES[name]
    layers = list(dropped.backbone)
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            assert isinstance(layers[place + 2], nn.Dropout)
    # The initial weights are the same, and so is what the network says when it is used.
    for one, other in zip(plain.parameters(), dropped.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(plain.eval()(X), dropped.eval()(X))
    dropped.train()
    assert not torch.equal(dropped(X), dropped(X))


def test_the_share_that_is_dropped():
    model = build_model("mlp", (1, 12, 12), 3, {"widths": (4000,), "dropout": 0.3, "activation": "leaky-relu"}).train()
    torch.manual_seed(0)
    assert float((model.features(X) == 0).double().mean()) == pytest.approx(0.3, abs=0.02)


def test_spiking_networks_share_the_mask_over_time():
    model = build_model("small-cnn", (1, 12, 12), 3, {"dropout": 0.3}, spiking=Spiking(steps=2))
    assert len(dropouts(model, SharedDropout)) == 2
    assert not dropouts(model)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_bad_rates(name, rate):
    with pytest.raises(UsageError, match=r"dropout must be in \[0, 1\)"):
        build_model(name, (1, 12, 12), 3, {"dropout": rate})
