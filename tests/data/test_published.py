"""Published file formats: found wherever people keep them, read exactly, refused when damaged."""

import dataclasses
import gzip
import io
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from stalwart.core.errors import FileError
from stalwart.data import cifar, load, mnist, svhn
from stalwart.data.idx import read_idx

SHARED = Path(os.environ.get("STALWART_SHARED", Path(__file__).parents[2].parent / "shared")) / "data"


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def mnist_arrays() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    arrays = []
    for n in (40, 20):
        arrays += [draw.integers(0, 256, (n, 28, 28), np.uint8), np.arange(n, dtype=np.uint8) % 10]
    return arrays


def write_mnist(folder: Path, names: tuple[str, ...] = mnist._LAYOUTS[0]) -> list[np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = mnist_arrays()
    for name, array in zip(names, arrays, strict=True):
        content = idx(array)
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return arrays


@pytest.mark.parametrize("layout", mnist._LAYOUTS)
@pytest.mark.parametrize("below", [".", "mnist", "MNIST/raw"])
def test_mnist_is_read_from_every_usual_place(tmp_path, layout, below):
    x, y, x_test, y_test = write_mnist(tmp_path / below, layout)
    data = load("mnist", {"validation": 0}, data_dir=tmp_path, download=False)
    assert torch.equal(data.train.x, torch.from_numpy(x)[:, None])
    assert data.train.y.tolist() == y.tolist()
    assert torch.equal(data.test.x, torch.from_numpy(x_test)[:, None])
    assert data.test.y.tolist() == y_test.tolist()
    assert (data.name, data.shape, len(data.classes), len(data.validation)) == ("mnist", (1, 28, 28), 10, 0)


def test_the_folders_of_mnist_and_fashion_mnist_are_not_mixed_up(tmp_path):
    write_mnist(tmp_path / "fashion-mnist")
    assert load("fashion-mnist", data_dir=tmp_path / "fashion-mnist", download=False).classes[0] == "T-shirt/top"
    for folder in (tmp_path, tmp_path / "fashion-mnist"):
        with pytest.raises(FileError, match="'mnist' was not found"):
            load("mnist", data_dir=folder, download=False)


def test_the_search_goes_from_data_dir_to_the_environment_to_the_cache(tmp_path, cache, monkeypatch):
    write_mnist(cache / "mnist")
    assert load("mnist", download=False).train.x.float().sum() > 0
    (tmp_path / "env").mkdir()
    monkeypatch.setenv("STALWART_DATA", str(tmp_path / "env"))
    assert len(load("mnist", download=False).test) == 20
    write_mnist(tmp_path / "env")
    (cache / "mnist" / mnist._LAYOUTS[0][0]).write_bytes(b"never read")
    assert len(load("mnist", download=False).test) == 20
    write_mnist(tmp_path / "first")
    (tmp_path / "env" / mnist._LAYOUTS[0][0]).write_bytes(b"never read")
    assert len(load("mnist", data_dir=tmp_path / "first", download=False).test) == 20


def test_nothing_found_names_the_files_the_places_and_the_way_out(tmp_path, cache):
    with pytest.raises(FileError) as caught:
        load("mnist", data_dir=tmp_path, download=False)
    message = str(caught.value)
    for part in ("t10k-labels-idx1-ubyte.gz", str(tmp_path), str(cache / "mnist"), "--data-dir", "STALWART_DATA"):
        assert part in message


def test_absent_files_are_downloaded_into_the_cache(publisher, cache, tmp_path, monkeypatch):
    arrays = mnist_arrays()
    remotes = tuple(
        publisher.remote(name, gzip.compress(idx(array))) for name, array in zip(mnist._LAYOUTS[0], arrays, strict=True)
    )
    monkeypatch.setattr(mnist, "_MNIST", dataclasses.replace(mnist._MNIST, remotes=remotes))
    assert len(load("mnist").train) == 36
    assert sorted(path.name for path in (cache / "mnist").iterdir()) == sorted(mnist._LAYOUTS[0])
    asked = len(publisher.asked)
    assert len(load("mnist", download=False).train) == 36
    assert len(publisher.asked) == asked
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    load("mnist", data_dir=tmp_path / "mine")
    assert (tmp_path / "mine" / "mnist" / mnist._LAYOUTS[0][0]).is_file()


def test_a_failed_download_says_where_it_looked_and_why_it_failed(tmp_path, monkeypatch):
    remotes = tuple(dataclasses.replace(remote, url="http://127.0.0.1:1/x") for remote in mnist._MNIST.remotes)
    monkeypatch.setattr(mnist, "_MNIST", dataclasses.replace(mnist._MNIST, remotes=remotes))
    with pytest.raises(FileError, match=r"(?s)Looked in.*cannot download http://127\.0\.0\.1:1/x.*Fetch"):
        load("mnist", data_dir=tmp_path)


IMAGES = idx(np.zeros((3, 28, 28), np.uint8))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (IMAGES[:9], "ends within its IDX header"),
        (IMAGES[:-1], "truncated"),
        (IMAGES + b"\0", "goes on after"),
        (idx(np.zeros(3, np.uint8)).ljust(99, b"\0"), "another kind of file"),
        (idx(np.zeros((3, 27, 28), np.uint8)), "items of shape"),
        (idx(np.zeros((0, 28, 28), np.uint8)), "items of shape"),
        (struct.pack(">4I", 0x803, 2**32 - 1, 28, 28), "items of shape"),
        (b"", "ends within its IDX header"),
        (b"<html>not found</html>", "another kind of file"),
    ],
    ids=["header", "short", "long", "labels", "shape", "none", "count", "empty", "page"],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_damaged_idx_files_are_refused_by_name(tmp_path, content, complaint, pack):
    path = tmp_path / "images"
    path.write_bytes(pack(content))
    with pytest.raises(FileError, match=complaint) as caught:
        read_idx(path, (28, 28))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-5], lambda raw: raw[:-8] + b"\0" * 8, lambda raw: raw[:20]])
def test_damaged_gzip_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "images.gz"
    path.write_bytes(damage(gzip.compress(idx(np.arange(2352, dtype=np.uint8).reshape(3, 28, 28)))))
    with pytest.raises(FileError, match=r"images\.gz"):
        read_idx(path, (28, 28))


def test_a_label_that_does_not_exist_and_a_missing_label_are_refused(tmp_path):
    write_mnist(tmp_path)
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(np.full(20, 10, np.uint8))))
    with pytest.raises(FileError, match="sample 0 the label 10"):
        load("mnist", data_dir=tmp_path)
    labels.write_bytes(gzip.compress(idx(np.zeros(19, np.uint8))))
    with pytest.raises(FileError, match=r"20 images but .* 19 labels"):
        load("mnist", data_dir=tmp_path)


@pytest.fixture
def small_cifar(monkeypatch):
    """The two CIFAR layouts with few records a file, so that a test need not write 180 MB."""
    for name in ("_CIFAR10", "_CIFAR100"):
        small = dataclasses.replace(getattr(cifar, name), train_records=20, test_records=10)
        monkeypatch.setattr(cifar, name, small)


def cifar_files(layout: cifar._Layout) -> dict[str, bytes]:
    draw = np.random.default_rng(1)
    files = {}
    for name, n in [*((name, layout.train_records) for name in layout.train), (layout.test, layout.test_records)]:
        table = draw.integers(0, 256, (n, layout.label_bytes + 3072), np.uint8)
        table[:, : layout.label_bytes] %= len(layout.classes)
        files[name] = table.tobytes()
    return files


def write_archive(path: Path, files: dict[str, bytes], folder: str) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("form", ["archive", "extracted", "bare"])
@pytest.mark.parametrize(("dataset", "name"), [("cifar10", "_CIFAR10"), ("cifar100", "_CIFAR100")])
def test_cifar_is_read_in_every_form(tmp_path, small_cifar, dataset, name, form):
    layout = getattr(cifar, name)
    files = cifar_files(layout)
    if form == "archive":
        write_archive(tmp_path / layout.archive, files, layout.folder)
    else:
        folder = tmp_path / layout.folder if form == "extracted" else tmp_path
        folder.mkdir(exist_ok=True)
        for file, content in files.items():
            (folder / file).write_bytes(content)
    data = load(dataset, {"validation": 0}, data_dir=tmp_path, download=False)
    # Twin: byte by byte, as the publisher describes a record.
    raw = b"".join(files[file] for file in layout.train)
    size = layout.label_bytes + 3072
    for sample in (0, 7, len(data.train) - 1):
        record = raw[sample * size : (sample + 1) * size]
        assert data.train.y[sample] == record[layout.label_bytes - 1]
        for channel, row, column in ((0, 0, 1), (1, 31, 0), (2, 5, 31)):
            expected = record[layout.label_bytes + channel * 1024 + row * 32 + column]
            assert data.train.x[sample, channel, row, column] == expected
    assert len(data.train) == len(layout.train) * 20
    assert (len(data.test), data.shape, len(data.classes)) == (10, (3, 32, 32), len(layout.classes))


def test_cifar_class_names_are_the_publishers():
    assert cifar._CIFAR10.classes[3] == "cat"
    names = cifar._CIFAR100.classes
    assert len(set(names)) == 100
    assert list(names) == sorted(names)


@pytest.mark.parametrize("only", ["cifar-10-python.tar.gz", "cifar-10-batches-py"])
def test_cifar_pickles_are_refused_with_the_reason(tmp_path, only):
    (tmp_path / only).mkdir()
    with pytest.raises(FileError, match=r"pickle.*run any code.*cifar-10-binary\.tar\.gz"):
        load("cifar10", data_dir=tmp_path)


def test_damaged_cifar_is_refused_by_name(tmp_path, small_cifar):
    files = cifar_files(cifar._CIFAR10)
    archive = tmp_path / "cifar-10-binary.tar.gz"
    write_archive(archive, files | {"test_batch.bin": files["test_batch.bin"][:-3073]}, "x")
    with pytest.raises(FileError, match=r"test_batch\.bin in .*cifar-10-binary\.tar\.gz has 27657 bytes"):
        load("cifar10", data_dir=tmp_path)
    write_archive(archive, files | {"data_batch_2.bin": b"\x0a" + files["data_batch_2.bin"][1:]}, "x")
    with pytest.raises(FileError, match=r"data_batch_2\.bin .*sample 0 the label 10"):
        load("cifar10", data_dir=tmp_path)
    write_archive(archive, {"test_batch.bin": b""}, "x")
    with pytest.raises(FileError, match=r"lacks data_batch_1\.bin"):
        load("cifar10", data_dir=tmp_path)
    write_archive(archive, files, "x")
    archive.write_bytes(archive.read_bytes()[:-100_000])
    with pytest.raises(FileError, match="damaged or truncated"):
        load("cifar10", data_dir=tmp_path)


def write_svhn(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(2)
    x, y = draw.integers(0, 256, (32, 32, 3, 20), np.uint8), np.arange(20, dtype=np.uint8)[:, None] % 10 + 1
    for name in svhn._FILES:
        scipy.io.savemat(folder / name, {"X": x, "y": y}, do_compression=True)
    return x, y


def test_svhn_is_read_and_its_label_10_is_the_digit_0(tmp_path):
    x, y = write_svhn(tmp_path)
    data = load("svhn", {"validation": 0}, data_dir=tmp_path, download=False)
    assert data.train.y.tolist() == [0 if label == 10 else label for label in y[:, 0]]
    assert data.train.x[4, 2, 31, 7] == x[31, 7, 2, 4]
    assert data.shape == (3, 32, 32)


def test_damaged_svhn_is_refused_by_name(tmp_path):
    x, y = write_svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    whole = path.read_bytes()
    for content in (b"", whole[:50], whole[: len(whole) // 2], b"<html>not found</html>" * 20):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"test_32x32\.mat"):
            load("svhn", data_dir=tmp_path)
    for bad in ({"X": x, "y": y[:5]}, {"X": x.astype(float), "y": y}, {"X": x, "y": y - 1}, {"X": x}):
        scipy.io.savemat(path, bad)
        with pytest.raises(FileError, match=r"test_32x32\.mat"):
            load("svhn", data_dir=tmp_path)


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="the real MNIST files are not here (STALWART_SHARED)")
def test_the_real_mnist():
    data = load("mnist", data_dir=SHARED, download=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (54_000, 6_000, 10_000)
    assert torch.bincount(data.test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    pixels = data.train.x.sum(dtype=torch.int64) + data.validation.x.sum(dtype=torch.int64)
    assert float(pixels) / (60_000 * 784 * 255) == pytest.approx(0.1307, abs=5e-5)
