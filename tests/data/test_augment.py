"""Augmentation against a slow twin that treats one image and one pixel at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator, shard
from stalwart.data.augment import Augment, cutout, random_crop, random_flip

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))


def images(shape: tuple[int, int, int, int]) -> torch.Tensor:
    return torch.rand(shape, generator=generator(0, "images")) + 0.1


def slow_crop(x, padding, source):
    draws = torch.rand(len(x), 2, generator=source)
    out = torch.zeros_like(x)
    for b in range(len(x)):
        dy, dx = (int(draw * (2 * padding + 1)) - padding for draw in draws[b].tolist())
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                if 0 <= i + dy < x.shape[2] and 0 <= j + dx < x.shape[3]:
                    out[b, :, i, j] = x[b, :, i + dy, j + dx]
    return out


def slow_flip(x, source):
    draws = torch.rand(len(x), 1, generator=source)
    mirrored = [x[b].flip(-1) if draws[b] < 0.5 else x[b] for b in range(len(x))]
    return torch.stack(mirrored)


def slow_cutout(x, size, source):
    draws = torch.rand(len(x), 2, generator=source)
    out = x.clone()
    for b in range(len(x)):
        top = int(draws[b, 0] * x.shape[2]) - size // 2
        left = int(draws[b, 1] * x.shape[3]) - size // 2
        out[b, :, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
    return out


@settings(deadline=None, max_examples=60)
@given(shape=SHAPES, padding=st.integers(1, 5), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_each_step_is_its_slow_twin(shape, padding, size, seed):
    x = images(shape)
    kept = x.clone()
    assert torch.equal(random_crop(x, padding, generator(seed)), slow_crop(x, padding, generator(seed)))
    assert torch.equal(random_flip(x, generator(seed)), slow_flip(x, generator(seed)))
    assert torch.equal(cutout(x, size, generator(seed)), slow_cutout(x, size, generator(seed)))
    source, twin = generator(seed), generator(seed)
    expected = slow_cutout(slow_flip(slow_crop(x, padding, twin), twin), size, twin)
    assert torch.equal(Augment(crop=padding, flip=True, cutout=size)(x, source), expected)
    assert torch.equal(x, kept)


def test_every_shift_and_both_directions_happen():
    x = torch.zeros(2000, 1, 9, 9)
    x[:, :, 4, 4] = 1
    found = random_crop(x, 2, generator(0)).flatten(1).argmax(1)
    assert {(int(p) // 9 - 4, int(p) % 9 - 4) for p in found} == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}
    x[:, :, 4, 4] = 0
    x[:, :, 4, 0] = 1
    mirrored = random_flip(x, generator(0))[:, 0, 4, 8].mean()
    assert abs(float(mirrored) - 0.5) < 0.06


def test_off_is_the_identity_and_draws_nothing():
    x, source = images((2, 1, 4, 4)), generator(0)
    state = source.get_state()
    assert Augment()(x, source) is x
    assert torch.equal(source.get_state(), state)


def test_two_processes_augment_as_one():
    x = images((6, 2, 5, 5))
    augment = Augment(crop=2, flip=True, cutout=2)
    whole = augment(x, generator(3))
    parts = []
    for rank in range(2):
        with shard(rank, 2):
            parts.append(augment(x[rank * 3 : rank * 3 + 3], generator(3)))
    assert torch.equal(torch.cat(parts), whole)


def test_impossible_requests_are_refused():
    for options in ({"crop": -1}, {"cutout": -1}):
        with pytest.raises(UsageError, match="0 or more"):
            Augment(**options)
    for options in ({"crop": 1}, {"flip": True}, {"cutout": 1}):
        with pytest.raises(InputError, match="B, C, H, W"):
            Augment(**options)(torch.zeros(3, 140), generator(0))
