"""Stuck cells, rows and columns."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.hardware import StuckAt

WEIGHT = torch.rand(60, 40, 3, generator=generator(0)) + 1.0


def stuck(fault, seed=0):
    return fault.apply({"conv.weight": WEIGHT}, generator(seed))["conv.weight"]


@given(low=st.floats(0.0, 1.0), high=st.floats(0.0, 1.0), seed=st.integers(0, 999))
def test_stuck_cells_are_nested_in_their_share(low, high, seed):
    low, high = sorted((low, high))
    fewer, more = stuck(StuckAt(low), seed) == 0, stuck(StuckAt(high), seed) == 0
    assert bool((fewer <= more).all())
    assert abs(int(fewer.sum()) - low * 7200) <= 4.5 * (7200 * low * (1 - low)) ** 0.5 + 1


@pytest.mark.parametrize(("whole", "axis"), [("row", 0), ("column", 1)])
def test_whole_rows_and_columns(whole, axis):
    zero = stuck(StuckAt(0.3, whole=whole)) == 0
    lines = zero.transpose(0, axis).flatten(1)
    assert bool((lines.all(1) == lines.any(1)).all())
    assert 0 < int(lines.all(1).sum()) < len(lines)


def test_stuck_at_the_ends_of_the_tensor():
    for at, value in (("min", WEIGHT.min()), ("max", WEIGHT.max())):
        assert bool((stuck(StuckAt(1.0, at)) == value).all())
    assert torch.equal(stuck(StuckAt(0.0)), WEIGHT)


def test_errors_and_descriptions():
    with pytest.raises(UsageError, match="share of stuck rows is a share.*write 0.1"):
        StuckAt(10.0, whole="row")
    with pytest.raises(InputError, match=r"shape \[3\] has no rows; use whole='cell'"):
        StuckAt(0.1, whole="row", only="fc.bias").apply({"fc.bias": torch.ones(3)}, generator(0))
    assert StuckAt(0.1).describe() == "10 % of the cells stuck at 0, on weight matrices"
    assert "2 % of the columns stuck at the max of their tensor" in StuckAt(0.02, "max", "column").describe()
