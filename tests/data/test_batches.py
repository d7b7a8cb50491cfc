"""Epoch orders: every sample once, reproducible, and the same for one process as for several."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stalwart.core.errors import UsageError
from stalwart.data import epoch_batches


@given(n=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_an_epoch_visits_every_sample_once(n, batch_size, seed, epoch):
    every = epoch_batches(n, batch_size, seed, epoch, drop_last=False)
    assert sorted(torch.cat(every).tolist()) == list(range(n))
    dropped = epoch_batches(n, batch_size, seed, epoch)
    assert len(dropped) == max(n // batch_size, 1)
    assert all(torch.equal(a, b) for a, b in zip(dropped, every, strict=False))
    assert {len(batch) for batch in dropped} == {min(n, batch_size)}


@given(
    n=st.integers(4, 60),
    world=st.integers(1, 4),
    each=st.integers(1, 10),
    drop_last=st.booleans(),
    seed=st.integers(0, 5),
)
def test_processes_together_see_the_batches_of_one(n, world, each, drop_last, seed):
    alone = epoch_batches(n, each * world, seed, 3, drop_last=drop_last)
    ranks = [epoch_batches(n, each * world, seed, 3, rank, world, drop_last) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    for whole, *parts in zip(alone, *ranks, strict=False):
        assert len({len(part) for part in parts}) == 1
        together = torch.cat(parts)
        # Only a batch that cannot be shared equally loses its last samples.
        assert torch.equal(together, whole[: len(whole) // world * world])


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    order = torch.cat(epoch_batches(100, 10, 0, 0))
    assert torch.equal(order, torch.cat(epoch_batches(100, 25, 0, 0)))
    torch.manual_seed(7)
    assert torch.equal(order, torch.cat(epoch_batches(100, 10, 0, 0)))
    assert not torch.equal(order, torch.cat(epoch_batches(100, 10, 0, 1)))
    assert not torch.equal(order, torch.cat(epoch_batches(100, 10, 1, 0)))


@pytest.mark.parametrize(
    ("n", "batch_size", "rank", "world", "complaint"),
    [
        (10, 3, 0, 2, "positive multiple of 2"),
        (10, 0, 0, 1, "positive multiple of 1"),
        (1, 2, 0, 2, "1 samples cannot give each of 2"),
        (10, 2, 2, 2, "rank 2 is not one of 2"),
    ],
)
def test_impossible_requests_are_refused(n, batch_size, rank, world, complaint):
    with pytest.raises(UsageError, match=complaint):
        epoch_batches(n, batch_size, 0, 0, rank, world)
