"""Several methods joined by "+": of each output the best, still a bound."""

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.bounds.methods import margin_bounds
from stalwart.core.errors import UsageError
from stalwart.core.random import generator

X = torch.rand(6, 5, generator=generator(0))
WITHIN = sw.Linf(0.03)


@pytest.fixture(scope="module")
def spiking():
    torch.manual_seed(1)
    ann = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
    return sw.convert(ann, torch.rand(64, 5, generator=generator(1)), steps=3)


def test_each_output_has_the_better_bound(spiking):
    with torch.no_grad():
        both, *single = (sw.bound(spiking, X, within=WITHIN, method=name) for name in ("ibp+crown", "ibp", "crown"))
        assert torch.equal(both.lower, torch.maximum(single[0].lower, single[1].lower))
        assert torch.equal(both.upper, torch.minimum(single[0].upper, single[1].upper))
        for seed in range(50):
            y = spiking(WITHIN.sample(X, generator(seed)))
            assert (y >= both.lower - 1e-5).all()
            assert (y <= both.upper + 1e-5).all()


def test_margins_likewise(spiking):
    y = spiking(X).argmax(1)
    with torch.no_grad():
        both, *single = (margin_bounds(spiking, X, y, WITHIN, name) for name in ("crown+ibp", "ibp", "crown"))
        assert torch.equal(both, torch.maximum(*single))
        assert torch.equal(sw.margin_bound(spiking, X, y, within=WITHIN, method="ibp+crown"), both.amin(1))


def test_every_name_must_be_one(spiking):
    with pytest.raises(UsageError, match="unknown bounding method 'crwon'.*Did you mean 'crown'"):
        sw.bound(spiking, X, within=WITHIN, method="ibp+crwon")
