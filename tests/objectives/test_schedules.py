"""Schedules of certified training: their formulas, their ends, and that nothing jumps."""

import itertools

import hypothesis
import pytest
from hypothesis import strategies as st

from stalwart.core.errors import UsageError
from stalwart.objectives.schedules import Anneal, Tied

SHAPES = ["linear", "smooth"]


def anneal(shape="linear", start=0.0, end=0.4, begin=10.0, over=50.0):
    return Anneal(start=start, end=end, begin=begin, over=over, shape=shape)


def smooth_by_hand(t, v0, v1, t0, t1, middle=0.25, p=4):
    """Return the authors' formula with its own names, written out."""
    tm = t0 + middle * (t1 - t0)
    d = tm - t0
    alpha = (v1 - v0) / ((t1 - tm) * p * d ** (p - 1) + d**p)
    if t <= tm:
        return v0 + alpha * (t - t0) ** p
    return v0 + alpha * d**p + alpha * p * d ** (p - 1) * (t - tm)


@pytest.mark.parametrize(
    ("time", "expected"), [(0, 0), (10, 0), (10.5, 0.004), (35.0, 0.2), (60, 0.4), (59.5, 0.396), (200, 0.4)]
)
def test_linear(time, expected):
    assert anneal().at(time) == pytest.approx(expected, abs=1e-12)


@hypothesis.given(
    share=st.floats(0, 1),
    start=st.floats(-1, 1),
    end=st.floats(-1, 1),
    begin=st.floats(0, 100),
    over=st.floats(0.5, 1000),
)
def test_smooth_is_the_authors_formula(share, start, end, begin, over):
    time = begin + share * over
    expected = smooth_by_hand(time, start, end, begin, begin + over)
    assert anneal("smooth", start, end, begin, over).at(time) == pytest.approx(expected, abs=1e-9)


def test_smooth_by_numbers():
    # On [0, 4]: d = 1, alpha = 1 / (3 * 4 + 1) = 1 / 13.
    schedule = anneal("smooth", 0.0, 1.0, 0.0, 4.0)
    found = [schedule.at(t) for t in (0.0, 0.5, 1.0, 2.0, 3.0, 4.0)]
    assert found == pytest.approx([0, 1 / 208, 1 / 13, 5 / 13, 9 / 13, 1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.4), (0.01, 0.0)])
def test_nothing_jumps_and_the_way_is_one_way(shape, start, end):
    schedule = anneal(shape, start, end)
    values = [schedule.at(k / 100) for k in range(7000)]
    steps = [b - a for a, b in itertools.pairwise(values)]
    assert max(map(abs, steps)) <= 2 * abs(end - start) / 5000
    assert all(step * (end - start) >= 0 for step in steps)
    assert (values[0], values[1000], values[6000]) == (start, start, end)


def test_the_slope_of_the_smooth_schedule_is_continuous():
    schedule = anneal("smooth", 0.0, 1.0, 0.0, 4.0)
    slope = lambda t: (schedule.at(t + 1e-6) - schedule.at(t - 1e-6)) / 2e-6  # noqa: E731
    assert slope(0.99999) == pytest.approx(slope(1.00001), rel=1e-3)
    assert slope(2.0) == pytest.approx(4 / 13, rel=1e-6)
    assert slope(0.001) < 1e-6, "it leaves the start without a kink"


def test_no_length_is_a_jump_at_its_beginning():
    schedule = anneal(begin=3.0, over=0.0)
    assert (schedule.at(2.999), schedule.at(3.0), schedule.at(4)) == (0.0, 0.4, 0.4)


@pytest.mark.parametrize(
    ("start", "end", "share", "expected"),
    [(1, 0.5, 0.0, 1), (1, 0.5, 1.0, 0.5), (1, 0.5, 0.5, 0.75), (1, 0, 0.25, 0.75), (0, 0, 0.3, 0), (1, 1, 1, 1)],
)
def test_weights_tied_to_the_radius(start, end, share, expected):
    assert Tied(start=float(start), end=float(end)).at(share) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("record", "options"), [(Anneal, {"begin": -1.0}), (Anneal, {"over": -1.0}), (Tied, {"end": 1.5})]
)
def test_impossible_schedules_are_refused(record, options):
    (name,) = options
    with pytest.raises(UsageError, match=name):
        record(**{"start": 0.0, "end": 1.0} | options)
