"""Splits: what a sample becomes, and which part it falls into."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stalwart.core.errors import InputError, UsageError
from stalwart.core.registry import options_of
from stalwart.data import DATASETS, Split, load
from stalwart.data.splits import assemble, holdout


def bytes_split(n: int = 10) -> Split:
    return Split(torch.arange(n * 4, dtype=torch.uint8).view(n, 1, 2, 2) * 6, torch.arange(n) % 2)


def test_bytes_become_floats_from_0_to_1():
    split = Split(torch.tensor([[0], [51], [255]], dtype=torch.uint8), torch.tensor([0, 1, 0]))
    x, y = split.batch(torch.tensor([2, 0, 1]))
    assert x.dtype == torch.float32
    assert x[:, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    assert y.tolist() == [0, 0, 1]


def test_floats_stay_and_the_stored_samples_are_never_changed():
    split = Split(torch.tensor([[0.25], [1.0]]), torch.tensor([0, 1]))
    split.images(torch.tensor([0, 1])).zero_()
    split.images(slice(0, 2)).zero_()
    assert split.x[:, 0].tolist() == [0.25, 1.0]
    split = bytes_split()
    before = split.x.clone()
    split.images(slice(0, 3)).zero_()
    assert torch.equal(split.x, before)


@given(n=st.integers(1, 30), batch_size=st.integers(1, 40))
def test_the_loader_gives_everything_once_in_order_and_again(n, batch_size):
    split = bytes_split(n)
    loader = split.loader(batch_size)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader)
        assert torch.equal(torch.cat([x for x, _ in batches]), split.x.float() / 255)
        assert torch.equal(torch.cat([y for _, y in batches]), split.y)
        assert all(len(y) == batch_size for _, y in batches[:-1])


def test_take_and_to():
    split = bytes_split()
    assert torch.equal(split.take(3).x, split.x[:3])
    assert len(split.take(99)) == 10
    assert torch.equal(split.to("cpu").y, split.y)
    for call in (lambda: split.take(-1), lambda: split.loader(0)):
        with pytest.raises(UsageError):
            call()


@pytest.mark.parametrize(
    ("x", "y", "complaint"),
    [
        (torch.zeros(2, 3), torch.tensor([0]), "1 labels for 2 inputs"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), "sample 1 has label -1"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1]), "uint8 or floats"),
    ],
)
def test_impossible_splits_are_refused(x, y, complaint):
    with pytest.raises(InputError, match=complaint):
        Split(x, y)


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), data=st.data(), seed=st.integers(0, 9))
def test_holdout_is_a_partition_that_gives_each_class_its_share(labels, data, seed):
    y = torch.tensor(labels)
    count = data.draw(st.integers(0, len(y)))
    stay, held = holdout(y, count, seed, "test")
    assert len(held) == count
    assert sorted([*stay.tolist(), *held.tolist()]) == list(range(len(y)))
    assert stay.tolist() == sorted(stay.tolist())
    for label in range(5):
        share = int((y == label).sum()) * count / len(y)
        assert abs(int((y[held] == label).sum()) - share) < 1 + 1e-9
    again = holdout(y, count, seed, "test")
    assert torch.equal(again[1], held)


def test_holdout_is_uniform_over_the_samples_of_a_class():
    y = torch.zeros(8, dtype=torch.int64)
    counts = torch.zeros(8)
    for seed in range(800):
        counts[holdout(y, 2, seed, "test")[1]] += 1
    # Binomial(800, 1/4): mean 200, standard deviation 12.2; five of them.
    assert ((counts - 200).abs() < 62).all()


def test_holding_out_everything_and_unequal_shapes_are_refused():
    with pytest.raises(InputError, match="none is left"):
        assemble("tiny", bytes_split(1), 0.5 + 0.4, ("a", "b"), 0, 0.9)
    with pytest.raises(InputError, match="must agree"):
        assemble("odd", bytes_split(4), Split(torch.zeros(2, 5), torch.tensor([0, 1])), ("a", "b"), 0, 0.1)


def test_digits_are_scikit_learns_and_only_validation_depends_on_the_seed():
    from sklearn.datasets import load_digits

    raw = load_digits()
    first, again, other = load("digits", seed=1), load("digits", seed=1), load("digits", seed=2)
    assert (len(first.train), len(first.validation), len(first.test)) == (1078, 270, 449)
    assert torch.equal(first.train.x, again.train.x)
    assert torch.equal(first.test.x, other.test.x)
    assert not torch.equal(first.validation.x, other.validation.x)
    together = torch.cat([first.train.x, first.validation.x, first.test.x])
    expected = (torch.from_numpy(raw.images) * 255 / 16).round().to(torch.uint8)
    assert sorted(map(tuple, together.flatten(1).tolist())) == sorted(map(tuple, expected.flatten(1).tolist()))
    assert torch.bincount(first.test.y).min() >= 43
    assert first.shape == (1, 8, 8)
    assert first.train.images(slice(None)).max() == 1.0


def test_the_table_loads_every_record_and_refuses_nonsense():
    from stalwart.core.registry import lookup

    for name in DATASETS:
        assert "validation" in options_of(lookup("dataset", DATASETS, name))
    assert len(load("digits", {"validation": "1/4"}).validation) == 337
    with pytest.raises(UsageError, match="Did you mean 'digits'"):
        load("digit")
    with pytest.raises(UsageError, match="Did you mean 'validation'"):
        load("digits", {"validate": 0.1})
    for name in ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"):
        with pytest.raises(UsageError, match=r"\[0, 1\), got 1"):
            load(name, {"validation": 1.0})
