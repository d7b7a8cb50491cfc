"""Work shared among processes of this machine: every shard is answered, also when processes are killed."""

import os

import pytest
import shards

from stalwart.core.errors import UsageError
from stalwart.core.workers import LocalWorkers, LostShardError, RayWorkers, workers


def test_every_shard_is_answered_by_another_process_and_errors_come_back():
    with LocalWorkers(2) as running:
        answers = dict(running.map_shards(shards.square, [3, 1, 2]))
        assert {number: value for number, (value, _) in answers.items()} == {0: 9, 1: 1, 2: 4}
        assert os.getpid() not in {process for _, process in answers.values()}
        assert list(running.map_shards(shards.square, [])) == []
        with pytest.raises(shards.Broken, match="-1 is negative"):
            list(running.map_shards(shards.square, [-1]))


def test_what_a_killed_process_was_at_is_done_again(tmp_path):
    with LocalWorkers(2) as running:
        answers = list(running.map_shards(shards.die_once, [(number, str(tmp_path)) for number in range(5)]))
    assert sorted(answers) == [(number, number * number) for number in range(5)]
    assert len(list(tmp_path.glob("1-*"))) == 2


def test_a_shard_that_kills_every_process_is_named_and_the_others_are_done():
    with LocalWorkers(1) as running:
        answers = dict(running.map_shards(shards.die_always, [5, 2, 7]))
    assert (answers[0], answers[2]) == (5, 7)
    assert isinstance(answers[1], LostShardError)
    assert "worked on number 1 was lost 3 times" in str(answers[1])


def test_impossible_numbers():
    for make in (lambda: LocalWorkers(0), lambda: LocalWorkers(1, 0), lambda: RayWorkers("auto", count=0)):
        with pytest.raises(UsageError, match="at least 1, got 0"):
            make()
    assert isinstance(workers(None, None, 1), LocalWorkers)
    assert isinstance(workers(None, "auto", 1), RayWorkers)
