"""Lines of progress in a log."""

import pytest

from stalwart.core import progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(clock, capsys, steps):
    with progress.progress("training", 100) as advance:
        for second, done in steps:
            clock[0] = second
            advance(done, "epoch 1/2")
    return capsys.readouterr().out.splitlines()


def test_a_line_at_most_every_15_seconds_tells_what_is_left(clock, capsys):
    found = lines(clock, capsys, [(0, 0), (10, 1), (60, 10), (70, 11), (120, 20)])
    assert found == [
        "training: 10/100  epoch 1/2  about 9 min left",
        "training: 20/100  epoch 1/2  about 8 min left",
    ]


def test_steps_done_before_took_none_of_the_time(clock, capsys):
    assert lines(clock, capsys, [(0, 80), (60, 81)]) == ["training: 81/100  epoch 1/2  about 19 min left"]


def test_no_forecast_from_nothing(clock, capsys):
    assert lines(clock, capsys, [(60, 1)]) == ["training: 1/100  epoch 1/2"]
