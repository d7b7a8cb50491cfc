"""Boxes with an interval for every element."""

import math

import pytest
import torch

from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.sets import Box, Linf


def test_by_hand():
    x, c = torch.tensor([[0.05, 0.5, 0.95]]), torch.tensor([[-1.0, 2.0, 3.0]])
    within = Box([[-0.5, 0.5, 0.75]], [[0.25, 0.5, 2.0]])
    lower, upper = within.bounds(x)
    assert (lower.tolist(), upper.tolist()) == ([[0.0, 0.5, 0.75]], [[0.25, 0.5, 1.0]])
    assert within.project(x, torch.tensor([[-9.0, 0.55, 9.0]])).tolist() == [[0.0, 0.5, 1.0]]
    torch.testing.assert_close(within.support(x, c), torch.tensor([2 * 0.5 + 3 * 1.0]))
    assert within.radius.tolist() == within.scale.tolist() == [0.125]
    assert within.steepest(c).tolist() == [[-1.0, 0.0, 1.0]]
    assert within.contains(x, torch.tensor([[0.25, 0.5, 0.75]])).all()
    assert not within.contains(x, torch.tensor([[0.25, 0.51, 0.75]])).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_box_around_an_image_is_the_linf_ball(dtype):
    x = torch.rand(3, 2, 4, 4, generator=generator(0), dtype=dtype)
    eps = torch.tensor([0.0, 0.1, 0.5], dtype=torch.float64)
    wide, reach = x.double(), eps.reshape(3, 1, 1, 1)
    box, ball = Box(wide - reach, wide + reach), Linf(eps)
    z = x + torch.randn(x.shape, generator=generator(1), dtype=dtype)
    c = torch.randn(x.shape, generator=generator(2), dtype=dtype)
    torch.testing.assert_close(box.project(x, z), ball.project(x, z))
    torch.testing.assert_close(box.support(x, c), ball.support(x, c))
    assert torch.equal(box.contains(x, z), ball.contains(x, z))


def test_samples_are_uniform_in_every_interval():
    ends = torch.tensor([[0.0, 0.2], [0.4, 0.8]]).double()
    within = Box(ends[0].repeat(4000, 1), ends[1].repeat(4000, 1))
    drawn = within.sample(ends.mean(0).float().repeat(4000, 1), generator(0)).double()
    share = (drawn - ends[0]) / (ends[1] - ends[0])
    for part in (0.25, 0.5, 0.75):
        assert ((share < part).double().mean(0) - part).abs().max() < 0.03


def test_selecting_takes_the_ends_of_the_samples():
    lower, upper = torch.rand(3, 2, generator=generator(0)) / 2, 0.5 + torch.rand(3, 2, generator=generator(1)) / 2
    within = Box(lower, upper, low=-1.0)
    for index in (slice(1, 3), torch.tensor([1, 2]), torch.tensor([False, True, True])):
        assert within.select(index) == Box(lower[1:], upper[1:], low=-1.0)
    assert within.select(torch.tensor([2, 0, 2])) == Box(lower[[2, 0, 2]], upper[[2, 0, 2]], low=-1.0)
    assert within.size == float(within.radius.max())


def test_a_record_does_not_change_with_the_tensors_it_was_made_from():
    lower, upper = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    within = Box(lower, upper)
    lower += 0.5
    upper -= 0.5
    assert within == Box([[0.0, 0.0]], [[1.0, 1.0]])


def test_infinite_ends_are_the_valid_range():
    assert Box([[-math.inf, 0.5]], [[0.5, math.inf]]) == Box([[0.0, 0.5]], [[0.5, 1.0]])


def test_what_has_no_meaning_is_refused():
    within = Box([[0.2, 0.2]], [[0.4, 0.4]])
    with pytest.raises(UsageError, match="no radius to set to 0.1; make one with other ends"):
        within.with_eps(0.1)
    with pytest.raises(InputError, match="input 0 lies 0.1 outside its box"):
        within.project(torch.tensor([[0.3, 0.5]]), torch.tensor([[0.3, 0.3]]))
    with pytest.raises(InputError, match=r"shape \[1, 2\] but the inputs \[1, 3\]"):
        within.bounds(torch.full((1, 3), 0.3))
    with pytest.raises(InputError, match=r"shape \[1, 2\] but the inputs \[2, 2\]"):
        within.steepest(torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("lower", "upper", "message"),
    [
        ([[0.1, 0.5]], [[0.2, 0.4]], r"lower is above upper in sample 0, element \[1\]"),
        ([[0.1], [math.nan]], [[0.2], [0.2]], "lower holds NaN"),
        ([[0.1], [0.1]], [[0.2], [math.nan]], "upper holds NaN"),
        ([[0.1], [1.5]], [[0.2], [1.7]], r"does not meet \[0, 1\] in sample 1, element \[0\]"),
        ([[-0.5]], [[-0.2]], r"does not meet \[0, 1\]"),
        ([0.1, 0.2], [0.2, 0.3], r"must both have the shape \[B, ...\]"),
        ([[0.1, 0.2]], [[0.2]], r"must both have the shape .* got \[1, 2\], \[1, 1\]"),
        (0.1, 0.2, r"must both have the shape \[B, ...\]"),
        ([["a"]], [[0.2]], "lower must be numbers"),
        ([[0.1], [0.2, 0.3]], [[0.2]], "lower must be numbers"),
        (None, [[0.2]], "lower must be numbers"),
    ],
)
def test_impossible_boxes_are_refused(lower, upper, message):
    with pytest.raises(UsageError, match=message):
        Box(lower, upper)
