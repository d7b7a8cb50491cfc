"""Large tensors come from memory that is used again, and never from memory still in use."""

import torch

from stalwart.core.buffers import _FREE, KEPT, LEAST, empty


def test_memory_is_used_again_but_not_while_in_use():
    like = torch.empty(0)
    first = empty((LEAST // 4,), like)
    address = first.data_ptr()
    view = first[10:]
    del first
    second = empty((LEAST // 4,), like)
    assert second.data_ptr() != address, "a view still needs the first tensor's memory"
    del view
    third = empty((2, LEAST // 8), like)
    assert third.data_ptr() == address
    assert third.shape == (2, LEAST // 8)
    assert third.is_contiguous()


def test_what_waits_is_bounded():
    alive = [empty((LEAST,), torch.empty(0)) for _ in range(KEPT // (4 * LEAST) + 3)]
    del alive
    assert 0 < sum(block.nbytes for block in _FREE) <= KEPT


def test_small_and_other_tensors_are_torchs_own():
    waiting = len(_FREE)
    assert empty((3, 4), torch.empty(0, dtype=torch.float64)).dtype == torch.float64
    assert len(_FREE) == waiting
