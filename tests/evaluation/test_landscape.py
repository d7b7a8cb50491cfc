"""The loss along random directions: a network whose loss is known by hand, and that nothing is left behind."""

import itertools
import math

import pytest
import torch
from torch import nn

from stalwart.core.errors import UsageError
from stalwart.core.random import generator, normal
from stalwart.evaluation.landscape import landscape


def one_weight():
    """Two logits, w x and 0: the loss of label 0 is log(1 + exp(-w x))."""
    net = nn.Linear(1, 2, bias=False)
    net.weight.data = torch.tensor([[3.0], [0.0]])
    return net


def test_the_loss_is_that_of_the_moved_weights():
    net = one_weight()
    found = landscape(net, torch.ones(4, 1), torch.zeros(4, dtype=torch.long), 0.2, directions=2, points=5, seed=1)
    assert found.distances == [-2.0, -1.0, 0.0, 1.0, 2.0]
    slopes = []
    for number, losses in enumerate(found.losses):
        draw = float(normal((2, 1), generator(1, "direction", number), net.weight, batch_axis=None)[0, 0])
        # The second weight is 0 and cannot move.
        expected = [math.log1p(math.exp(-3 * (1 + 0.2 * at * draw))) for at in found.distances]
        assert losses == pytest.approx(expected, rel=1e-5)
        slopes += [abs(b - a) for a, b in itertools.pairwise(expected)]
    assert found.slope == pytest.approx(sum(slopes) / len(slopes), rel=1e-5)


def test_half_the_distance_between_points_leaves_the_slope_of_a_monotone_loss():
    x, y = torch.ones(3, 1), torch.zeros(3, dtype=torch.long)
    coarse, fine = (landscape(one_weight(), x, y, points=points, seed=0) for points in (5, 9))
    assert coarse.slope == pytest.approx(fine.slope, rel=1e-5)


def test_the_model_is_left_as_it_was():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    landscape(net, torch.rand(6, 4), torch.zeros(6, dtype=torch.long), directions=1, points=2)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("options", [{"level": 0.0}, {"directions": 0}, {"reach": 0.0}, {"points": 1}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        landscape(one_weight(), torch.ones(1, 1), torch.zeros(1, dtype=torch.long), **options)
