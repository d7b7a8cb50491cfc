"""Boxes of weights: what is proven holds for drawn networks of the box, and what is attacked is what mismatch moves."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from stalwart.core.random import generator
from stalwart.evaluation.weight_boxes import box_of, certified_weights, worst_weights

X = torch.rand(40, 1, 4, 4, generator=generator(3))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()


def test_the_box_is_about_what_mismatch_moves(net):
    assert set(box_of(net, 0.1).select(net)) == {"0.weight", "0.bias", "4.weight", "4.bias", "6.weight", "6.bias"}


def test_drawn_networks_of_the_box_keep_what_is_proven(net):
    y = net(X).argmax(1)
    box = box_of(net, 0.02)
    proven = certified_weights(net, X, y, 0.02).certified
    assert 0 < proven < 1
    params = {name: value.detach() for name, value in box.select(net).items()}
    for seed in range(50):
        moved = box.corner(params, generator(seed))
        assert float((functional_call(net, moved, (X,)).argmax(1) == y).float().mean()) >= proven
    assert worst_weights(net, X, y, 0.02, 0).attacked >= proven
    assert certified_weights(net, X, y, 0.2).certified <= proven


def test_a_wider_box_leaves_less(net):
    y = net(X).argmax(1)
    narrow, wide = (worst_weights(net, X, y, fraction, 0) for fraction in (0.02, 0.3))
    assert wide.attacked < narrow.attacked
    assert wide.attacked <= wide.corner


class Odd(nn.Module):
    """Uses an operator without a rule."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        return self.last(torch.special.bessel_j0(x.flatten(1)))


def test_a_model_that_cannot_be_bounded_says_why():
    found = certified_weights(Odd().eval(), X, torch.zeros(40, dtype=torch.long), 0.01)
    assert "bessel" in found.refused
    assert found.certified == 0
