"""ECG5000: scaling, splits, and what is said where its file is missing or damaged."""

import numpy as np
import pytest
import torch

from stalwart.core.errors import FileError, UsageError
from stalwart.data import load


def arrays(n=60):
    draw = np.random.default_rng(0)
    y = np.sort(draw.integers(1, 6, n)).astype(np.uint8)
    x = draw.normal(size=(n, 140)).astype(np.float32)
    return {"x_train": x, "y_train": y, "x_test": 2 * x[:20], "y_test": y[:20]}


def write(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    content = {key: value for key, value in {**arrays(), **changes}.items() if value is not None}
    np.savez(folder / "ecg5000.npz", **content)


@pytest.mark.parametrize("below", ["", "ecg5000", "ECG5000"])
def test_series_are_scaled_shuffled_and_split(tmp_path, below):
    write(tmp_path / below)
    data = load("ecg5000", {"validation": 0.25}, data_dir=tmp_path)
    raw = arrays()
    assert (data.shape, len(data.classes)) == ((1, 140), 5)
    assert (len(data.train), len(data.validation), len(data.test)) == (45, 15, 20)
    low, high = raw["x_train"].min(), raw["x_train"].max()
    whole = torch.cat([data.train.x, data.validation.x])
    assert whole.dtype == torch.float32
    assert (float(whole.min()), float(whole.max())) == (0, 1)
    assert (float(data.test.x.min()), float(data.test.x.max())) == (0, 1), "test values beyond are cut"
    expected = {row.tobytes(): int(y) - 1 for row, y in zip(raw["x_train"], raw["y_train"], strict=True)}
    back = np.stack(list(map(np.frombuffer, expected, [np.float32] * 60)))
    for x, y in zip(whole, torch.cat([data.train.y, data.validation.y]), strict=True):
        nearest = np.abs((back - low) / (high - low) - x[0].numpy()).max(1)
        assert nearest.min() < 1e-6
        assert list(expected.values())[int(nearest.argmin())] == y
    again, other = (load("ecg5000", {"validation": 0.25}, seed, data_dir=tmp_path) for seed in (0, 1))
    assert torch.equal(again.validation.x, data.validation.x)
    assert torch.equal(other.test.x, data.test.x)
    assert not torch.equal(other.validation.x, data.validation.x)
    assert not torch.equal(data.test.y, data.test.y.sort().values), "the file is sorted by class"


def test_a_missing_file_is_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("STALWART_DATA", raising=False)
    with pytest.raises(FileError, match=r"'ecg5000' was not found(?s:.*)--data-dir(?s:.*)STALWART_DATA"):
        load("ecg5000", data_dir=tmp_path)
    with pytest.raises(UsageError, match="validation"):
        load("ecg5000", {"validation": 1.0}, data_dir=tmp_path)


def test_damaged_files_are_refused_by_name(tmp_path):
    write(tmp_path)
    path = tmp_path / "ecg5000.npz"
    whole = path.read_bytes()
    for content in (b"", whole[:60], whole[: len(whole) // 2], b"<html>not found</html>"):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"ecg5000\.npz"):
            load("ecg5000", data_dir=tmp_path)
    raw = arrays()
    x, y = raw["x_train"], raw["y_train"]
    bad = x.copy()
    bad[3, 4] = np.nan
    for changes, what in (
        ({"y_test": None}, "lacks the arrays y_test"),
        ({"x_train": x[:, :139]}, r"float32 \[60, 139\]"),
        ({"x_train": x.astype(np.int64)}, "int64"),
        ({"x_train": bad}, "not finite"),
        ({"y_train": y[:5]}, r"60 series in x_train, but y_train \[5\]"),
        ({"y_train": y - y.min()}, "the label 0, not 1 to 5"),
        ({"y_train": np.array([object()] * 60)}, "unpickles"),
    ):
        write(tmp_path, **changes)
        with pytest.raises(FileError, match=what):
            load("ecg5000", data_dir=tmp_path)


def test_the_real_beats(shared):
    folder = shared / "data" / "ecg5000"
    if not folder.is_dir():
        pytest.skip(f"no ECG5000 at {folder}")
    data = load("ecg5000", data_dir=folder)
    assert (len(data.train), len(data.validation), len(data.test)) == (400, 100, 4499)
    assert data.test.y.bincount().tolist() == [2626, 1590, 86, 175, 22]
    assert (data.train.y.bincount() + data.validation.y.bincount()).tolist() == [292, 177, 10, 19, 2]
    assert float((data.test.y[:1000] == 0).float().mean()) == pytest.approx(2626 / 4499, abs=0.05)
