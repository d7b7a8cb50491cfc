"""Training on what a registered attack finds: the attack's own points, the base's own loss, no trace."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import stalwart as sw
from stalwart.core.errors import UsageError
from stalwart.core.random import generator
from stalwart.core.registry import build
from stalwart.objectives import OBJECTIVES, Moment
from stalwart.recipes import load_recipe
from stalwart.sets import Events


def make(**options):
    return build("objective", OBJECTIVES, "crafted", options)


@pytest.fixture
def rasters():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3))
    x = (torch.rand(8, 2, 4, 4, generator=generator(0)) < 0.4).float()
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    return model.train(), x, y


@pytest.mark.parametrize("attack", ["spikefool", "binary-pgd", "pgd"])
def test_it_trains_on_what_the_attack_finds(rasters, attack):
    model, x, y = rasters
    objective = make(attack=attack, norm="events", eps=6)
    x_adv = objective.craft(model, x, y, Moment(5))
    assert torch.equal(x_adv, sw.attack(attack)(model, x, y, within=Events(6), seed=5).x_adv)
    assert Events(6).contains(x, x_adv).all()
    assert (x_adv != x).any()
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_loss_is_the_bases(rasters):
    model, x, y = rasters
    model.eval()
    common = {"attack": "spikefool", "norm": "events", "eps": 6}
    x_adv = make(**common).craft(model, x, y, Moment(0))
    clean, moved = model(x), model(x_adv)
    plain, _ = make(base="pgd-at", **common).loss(model, x, y, Moment(0))
    assert torch.allclose(plain, F.cross_entropy(moved, y))
    trades, _ = make(base="trades", options={"beta": 2}, **common).loss(model, x, y, Moment(0))
    divergence = F.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="batchmean")
    assert torch.allclose(trades, F.cross_entropy(clean, y) + 2 * divergence, atol=1e-6)
    trades.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_other_norms_work_too(rasters):
    model, x, y = rasters
    objective = make(base="pgd-at", attack="pgd", attack_options={"steps": 3}, eps="8/255")
    x_adv = objective.craft(model, x, y, Moment(0))
    assert 0 < (x_adv - x).abs().max() <= 8 / 255 + 1e-6


def test_impossible_choices_are_refused():
    with pytest.raises(UsageError, match="attacks weights"):
        make(attack="weight-pgd")
    with pytest.raises(UsageError, match="Did you mean 'spikefool'"):
        make(attack="spikefol")
    with pytest.raises(UsageError, match="whole number"):
        make(attack="spikefool", norm="events", eps=0.5)
    with pytest.raises(UsageError, match="has no option"):
        make(attack="spikefool", attack_options={"size": 1})


def test_the_shipped_recipe_says_so():
    recipe = load_recipe("nmnist-spiking-spikefool")
    assert recipe.objective.name == "crafted"
    assert recipe.objective.options["attack"] == "spikefool"
    assert recipe.evaluation.norm == "events"
