"""Flips of binary rasters: members, projections, the support function and bounds through time, against all members."""

import itertools

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.sets import Events
from stalwart.spiking import LIF, EventFrames, SpikingNetwork, with_neurons


def raster(*shape, seed=0):
    return (torch.rand(shape, generator=generator(seed)) < 0.4).float()


def everything(x, flips):
    """All members of the set around one raster [...]."""
    flat = x.flatten()
    for count in range(flips + 1):
        for chosen in itertools.combinations(range(len(flat)), count):
            point = flat.clone()
            point[list(chosen)] = 1 - point[list(chosen)]
            yield point.reshape(x.shape)


@pytest.mark.parametrize("flips", [0, 1, 2])
def test_the_support_function_is_the_largest_value_of_all_members(flips):
    x, c = raster(3, 2, 4), torch.randn(3, 2, 4, generator=generator(1))
    within = Events(flips)
    for row in range(3):
        members = torch.stack(list(everything(x[row], flips)))
        exact = float((members * c[row]).flatten(1).sum(1).max())
        found = float(within.support(x[row : row + 1], c[row : row + 1]))
        assert exact <= found + 1e-7
        assert found == pytest.approx(exact, abs=1e-5)
        assert within.contains(x[row].expand_as(members), members).all()


def test_projections_flip_the_bins_that_moved_farthest():
    x = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    z = torch.tensor([[3.0, 0.6, -5.0, -1.0]])
    assert Events(1).project(x, z).tolist() == [[1.0, 1.0, 0.0, 1.0]]
    assert Events(2).project(x, z).tolist() == [[1.0, 1.0, 0.0, 0.0]]
    # The second bin moved less than half the way, the third the wrong way.
    assert Events(4).project(x, z).tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_samples_are_members_and_others_are_not():
    x = raster(5, 2, 3, 3)
    within = Events([0, 1, 2, 3, 18])
    drawn = within.sample(x, generator(2))
    assert ((drawn != x).flatten(1).sum(1) == torch.tensor([0, 1, 2, 3, 18])).all()
    assert within.contains(x, drawn).all()
    assert not Events(2).contains(x[3:], drawn[3:]).any()
    assert not Events(2).contains(x, x + 0.3).any()
    low, high = within.bounds(x)
    assert torch.equal(low[0], high[0])
    assert (low[1:] == 0).all()
    assert (high[1:] == 1).all()


def test_what_is_no_raster_is_refused():
    with pytest.raises(InputError, match="other than 0 and 1"):
        Events(1).sample(torch.full((1, 4), 0.5), generator(0))
    with pytest.raises(UsageError, match="whole number"):
        Events(1.5)
    with pytest.raises(UsageError, match="at least 0"):
        Events(-1)


def network():
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.ReLU())
    model = SpikingNetwork(EventFrames(3), with_neurons(layers, 3, lambda path: LIF(0.7, 0.5)), 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model.eval()


@pytest.mark.parametrize("method", ["crown", "crown-ibp", "lbp", "ibp"])
def test_bounds_through_time_hold_for_every_flip(method):
    model, x = network(), raster(2, 3, 1, 2, 3, seed=5)
    with torch.no_grad():
        bounds = sw.bound(model, x, within=Events(2), method=method)
        for row in range(2):
            out = model(torch.stack(list(everything(x[row], 2))))
            assert (out >= bounds.lower[row] - 1e-5).all()
            assert (out <= bounds.upper[row] + 1e-5).all()
    assert out.unique(dim=0).shape[0] > 3


def test_the_first_layer_is_bounded_by_the_worst_bins_not_by_the_box():
    torch.manual_seed(0)
    layer, x = nn.Sequential(nn.Flatten(), nn.Linear(8, 4)), raster(3, 2, 2, 2, seed=1)
    with torch.no_grad():
        bounds = sw.bound(layer, x, within=Events(2), method="crown")
        for row in range(3):
            out = layer(torch.stack(list(everything(x[row], 2))))
            assert torch.allclose(bounds.lower[row], out.amin(0), atol=1e-5)
            assert torch.allclose(bounds.upper[row], out.amax(0), atol=1e-5)


def test_pgd_flips_bins_that_change_the_answer():
    model, x = network(), raster(16, 3, 1, 2, 3, seed=2)
    with torch.no_grad():
        y = model(x).argmax(1)
        sure = (model(x).topk(2, 1).values @ torch.tensor([1.0, -1.0])) > 0
    x, y = x[sure], y[sure]
    found = sw.attack("pgd", steps=10)(model, x, y, within=Events(3), seed=0)
    assert Events(3).contains(x, found.x_adv).all()
    assert found.success.sum() > 0
