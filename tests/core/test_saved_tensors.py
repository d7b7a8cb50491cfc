"""Tensors on disk: what is read is what was written, or an error."""

import errno
import json
import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

from stalwart.core import files
from stalwart.core.errors import FileError
from stalwart.core.tensors import load_tensors, load_weights, save_tensors

TENSORS = {
    "float32": torch.tensor([[1.5, -0.0], [float("nan"), float("inf")]]),
    "float64": torch.tensor([1e-300], dtype=torch.float64),
    "bfloat16": torch.tensor([1.0, 2.5], dtype=torch.bfloat16),
    "float16": torch.tensor([[0.5]], dtype=torch.float16),
    "int64": torch.tensor([2**60, -1]),
    "int32": torch.tensor([[7]], dtype=torch.int32),
    "uint8": torch.arange(5, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(3.25),
    "empty": torch.empty(0, 3),
}
META = {"epoch": 7, "note": "ö"}


def same(a, b):
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))
    )


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, TENSORS, META)
    return path


def test_every_kind_of_tensor_comes_back_bit_for_bit(path):
    tensors, meta = load_tensors(path, "weights")
    assert meta == META
    assert tensors.keys() == TENSORS.keys()
    assert all(same(tensors[name], TENSORS[name]) for name in TENSORS)


def test_the_same_content_gives_the_same_bytes(path):
    before = path.read_bytes()
    for _ in range(8):
        save_tensors(path, dict(reversed(TENSORS.items())), META)
        assert path.read_bytes() == before


def test_other_tools_can_read_the_file(path):
    found = safetensors.torch.load_file(path)
    assert all(same(found[name], TENSORS[name]) for name in TENSORS)


def test_views_and_shared_memory_are_saved_by_value(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    given = {"whole": base, "column": base[:, 1], "turned": base.t(), "grad": nn.Parameter(base)}
    save_tensors(tmp_path / "x", given)
    tensors, meta = load_tensors(tmp_path / "x", "weights")
    assert meta is None
    assert all(torch.equal(tensors[name], given[name]) for name in given)


def test_nothing_at_all_is_a_valid_file(tmp_path):
    save_tensors(tmp_path / "x", {})
    assert load_tensors(tmp_path / "x", "weights") == ({}, None)


def test_a_file_cut_at_any_byte_is_refused(path):
    payload = path.read_bytes()
    for length in [*range(40), *range(40, len(payload), 7), len(payload) - 1]:
        path.write_bytes(payload[:length])
        with pytest.raises(FileError, match="weights"):
            load_tensors(path, "weights")
    path.write_bytes(payload + b"\0")
    with pytest.raises(FileError, match="weights"):
        load_tensors(path, "weights")


@pytest.mark.parametrize("mask", [0x01, 0x10, 0x80])
def test_no_flipped_bit_anywhere_goes_unnoticed(path, mask):
    payload = path.read_bytes()
    noticed = 0
    for place in range(len(payload)):
        broken = bytearray(payload)
        broken[place] ^= mask
        path.write_bytes(broken)
        try:
            tensors, meta = load_tensors(path, "weights")
        except FileError:
            noticed += 1
            continue
        # Only blanks in the header may differ without changing what the file says.
        assert meta == META, place
        assert tensors.keys() == TENSORS.keys(), place
        assert all(same(tensors[name], TENSORS[name]) for name in TENSORS), place
    assert noticed > 0.97 * len(payload)


def test_a_changed_value_is_told_from_a_truncated_file(path):
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)
    with pytest.raises(FileError, match="checksum"):
        load_tensors(path, "weights")


def test_a_checksum_cannot_be_left_out(path):
    tensors, _ = load_tensors(path, "weights")
    path.write_bytes(safetensors.torch.save(tensors, {"stalwart.meta": json.dumps({"epoch": 8})}))
    with pytest.raises(FileError, match="checksum"):
        load_tensors(path, "weights")


def test_files_of_other_tools_are_read_without_meta(tmp_path):
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "x", {"format": "pt"})
    tensors, meta = load_tensors(tmp_path / "x", "weights")
    assert meta is None
    assert torch.equal(tensors["w"], torch.ones(2))


def test_a_pickle_is_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("hit").touch, ())

    (tmp_path / "x").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FileError, match="not a valid safetensors file"):
        load_tensors(tmp_path / "x", "weights")
    assert not (tmp_path / "hit").exists()


def test_a_full_disk_leaves_the_old_weights(path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(FileError, match="No space left"):
        save_tensors(path, {"w": torch.ones(1000)})
    assert path.read_bytes() == before


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileError, match="cannot read checkpoint .*gone"):
        load_tensors(tmp_path / "gone", "checkpoint")


def test_weights_go_into_a_module(tmp_path):
    source, target = (
        nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
        nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
    )
    source(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    save_tensors(tmp_path / "x", source.state_dict(), {"epoch": 1})
    assert load_weights(target, tmp_path / "x") == {"epoch": 1}
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, "lacks 'bias' \\(1 in all\\)"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "extra": torch.zeros(1)}, "holds 'extra'"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, r"weight has shape \[3, 2\] in the file and \[2, 3\]"),
        ({}, "lacks 'bias' \\(2 in all\\)"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(tmp_path, state, message):
    module = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    save_tensors(tmp_path / "x", state)
    with pytest.raises(FileError, match=message):
        load_weights(module, tmp_path / "x")
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
