"""Normalisation as layer 0, the head, and cheap draws."""

import pytest
import torch
from torch import nn

from stalwart.core.errors import UsageError
from stalwart.models import Classifier, Normalise, build_model
from stalwart.stochastic import GaussianHead, NoiseLayer, noise


@pytest.fixture
def x():
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Shake(NoiseLayer):
    """A noise layer outside the head."""

    def forward(self, x):
        if self.mode == "off":
            return x
        return x + torch.randn(x.shape, generator=self.stream(x.device))


class Counted(nn.Flatten):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_normalisation_by_hand():
    layer = Normalise([0.5, 0.0], [0.25, 2.0])
    x = torch.tensor([[[[1.0]], [[1.0]]]])
    assert layer(x).flatten().tolist() == [2.0, 0.5]
    assert layer(x.flatten(1)).tolist() == [[2.0, 0.5]]
    assert dict(layer.named_parameters()) == {}
    assert set(layer.state_dict()) == {"mean", "std"}


def test_the_model_is_head_of_backbone_of_normalised_input(x):
    model = build_model("small-cnn", (1, 8, 8), 10, mean=[0.3], std=[0.5])
    assert torch.equal(model(x), model.head(model.features(x)))
    assert torch.equal(model.features(x), model.backbone((x - 0.3) / 0.5))
    plain = build_model("small-cnn", (1, 8, 8), 10)
    assert torch.equal(plain.normalise(x), x)
    assert not plain.cheap_draws


@pytest.mark.parametrize(
    ("mean", "std"), [([0.5], None), (None, [1.0, 1.0]), ([0.5] * 3, [1.0, 0.0, 1.0]), ([float("nan")] * 3, None)]
)
def test_normalisations_that_do_not_fit_are_refused(mean, std):
    with pytest.raises(UsageError):
        build_model("small-cnn", (3, 8, 8), 10, mean=mean, std=std)


def test_draws_of_a_noisy_head_cost_one_backbone_pass(x):
    backbone = Counted()
    model = Classifier(Normalise([0.0], [1.0]), backbone, GaussianHead(64, 5, std=0.5))
    assert model.cheap_draws
    with noise(model, seed=1):
        drawn = model.draw(x, 6)
    assert drawn.shape == (6, 3, 5)
    assert backbone.calls == 1
    with noise(model, seed=1):
        assert torch.equal(model.head.draw(model.features(x), 6), drawn)
    assert len(drawn.unique(dim=0)) == 6


def test_noise_in_the_backbone_is_drawn_anew_each_time(x):
    model = Classifier(Normalise([0.0], [1.0]), nn.Sequential(Shake(), nn.Flatten()), GaussianHead(64, 5, std=1e-6))
    assert not model.cheap_draws
    drawn = model.draw(x, 4)
    assert drawn.shape == (4, 3, 5)
    assert (drawn[0] - drawn[1]).abs().amax() > 0.01
    with noise(model, "off"):
        assert model.cheap_draws


def test_a_model_without_noise_repeats_itself(x):
    model = build_model("mlp", (1, 8, 8), 4)
    assert torch.equal(model.draw(x, 3), model(x).expand(3, -1, -1))
    with pytest.raises(UsageError, match="draws"):
        model.draw(x, 0)


def test_a_head_of_ones_own(x):
    model = build_model("mlp", (1, 8, 8), 4, head=lambda width, classes: GaussianHead(width, classes, std=0.1))
    assert isinstance(model.head, GaussianHead)
    assert model.cheap_draws
    with noise(model, "off"):
        assert model(x).shape == (3, 4)


def test_the_examples_in_the_docstrings():
    assert Normalise([0.5], [0.25])(torch.tensor([[1.0]])).tolist() == [[2.0]]
    assert build_model("mlp", (1, 8, 8), 10)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
