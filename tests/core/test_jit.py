"""Compiled loops: every part of the axis is worked on once, whatever the number of threads."""

import pytest
import torch

from stalwart.core import jit

pytestmark = pytest.mark.skipif(not jit.available(), reason="numba is not installed")


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 5, 64])
def test_the_axis_is_shared_without_gap_or_overlap(threads, length):
    from tests.core.adding import add_one

    before = torch.get_num_threads()
    counts = torch.zeros(length)
    try:
        torch.set_num_threads(threads)
        for _ in range(20):
            jit.run(add_one, length, counts)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(counts, torch.full((length,), 20.0))


def test_one_thread_serves_where_torch_brings_no_openmp(monkeypatch):
    from tests.core.adding import add_one

    monkeypatch.setattr(jit, "_team", lambda: None)
    counts = torch.zeros(7)
    jit.run(add_one, 7, counts)
    assert torch.equal(counts, torch.ones(7))


def test_strided_tensors_are_refused():
    from tests.core.adding import add_one

    with pytest.raises(ValueError, match="contiguous"):
        jit.run(add_one, 3, torch.zeros(6)[::2])
