"""A user's own arrays and images."""

import numpy as np
import pytest
import torch
from PIL import Image

from stalwart.core.errors import FileError, InputError, UsageError
from stalwart.data import load

DRAW = np.random.default_rng(0)
Y = np.arange(20) % 2


def npz(folder, **arrays):
    np.savez(folder / "own.npz", **arrays)
    return {"path": str(folder / "own.npz")}


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((20, 3, 8, 9), "auto", (3, 8, 9)),
        ((20, 8, 9, 3), "auto", (3, 8, 9)),
        ((20, 8, 9), "auto", (1, 8, 9)),
        ((20, 140), "auto", (140,)),
        ((20, 3, 8, 3), "auto", (3, 8, 3)),
        ((20, 3, 8, 3), "last", (3, 3, 8)),
        ((20, 8, 9, 3), "first", (8, 9, 3)),
        ((20, 8, 9), "keep", (8, 9)),
        ((20, 2, 3, 4, 5), "auto", (2, 3, 4, 5)),
    ],
)
@pytest.mark.parametrize("kind", ["uint8", "float64"])
def test_arrays_of_every_shape_and_type(tmp_path, shape, layout, expected, kind):
    x = DRAW.integers(0, 256, shape, np.uint8) if kind == "uint8" else DRAW.random(shape)
    options = npz(tmp_path, x_train=x, y_train=Y, x_test=x[:4], y_test=Y[:4].astype(np.uint8))
    data = load("npz", {**options, "layout": layout, "validation": 0})
    assert (data.name, data.shape, data.classes) == ("own", expected, ("0", "1"))
    assert data.train.x.dtype == (torch.uint8 if kind == "uint8" else torch.float32)
    scaled = x / 255 if kind == "uint8" else x
    if layout == "last" or (shape == (20, 8, 9, 3) and layout == "auto"):
        scaled = np.moveaxis(scaled, -1, 1)
    np.testing.assert_allclose(data.train.images(slice(None)), scaled.reshape(20, *expected), rtol=1e-6)
    assert len(data.test) == 4


def test_without_a_test_set_one_is_cut_that_no_seed_changes(tmp_path):
    options = npz(
        tmp_path, x_train=np.arange(20, dtype=np.uint8)[:, None], y_train=Y, classes=np.array(["a", "b", "c"])
    )
    first, other = (load("npz", {**options, "test": 0.2, "validation": 0.25}, seed=seed) for seed in (0, 5))
    assert (len(first.train), len(first.validation), len(first.test)) == (12, 4, 4)
    assert first.classes == ("a", "b", "c")
    parts = [set(part.x[:, 0].tolist()) for part in (first.train, first.validation, first.test)]
    assert set.union(*parts) == set(range(20))
    assert torch.equal(first.test.x, other.test.x)
    assert not torch.equal(first.validation.x, other.validation.x)


def test_rounding_beyond_the_range_is_clipped(tmp_path):
    x = np.full((20, 3), 1.000001)
    x[0, 0] = -1e-6
    data = load("npz", npz(tmp_path, x_train=x, y_train=Y))
    assert data.train.x.max() <= 1.0
    assert torch.cat([data.train.x, data.validation.x, data.test.x]).min() == 0.0


GOOD = np.zeros((20, 3))


def changed(position, value):
    x = GOOD.copy()
    x[position] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"x_train": changed((7, 1), np.nan)}, r"x_train in .*own\.npz hold NaN or infinity, first in sample 7"),
        ({"x_train": changed((7, 1), 3.0)}, r"x_train .*must lie in \[0, 1\]"),
        ({"x_test": changed((2, 0), np.inf), "y_test": Y}, r"x_test .*sample 2"),
        ({"x_train": GOOD.astype(np.int64)}, "x_train .*must be uint8"),
        ({"x_train": np.zeros(20)}, "x_train .*shape"),
        ({"x_train": np.zeros((20, 0))}, "x_train .*shape"),
        ({"y_train": Y[:5]}, "y_train .*5 labels for 20 inputs"),
        ({"y_train": Y.astype(float)}, "y_train .*must be integers"),
        ({"y_train": Y - 1}, "y_train .*sample 0 has label -1"),
        ({"y_train": Y + 1}, "y_train .*never has the label 0.*y - 1"),
        ({"y_train": np.eye(2, dtype=int)[Y]}, "y_train .*shape"),
        ({"x_test": GOOD}, "no array 'y_test'"),
        ({"y_test": Y}, "no array 'x_test'"),
        ({"x_test": GOOD, "y_test": Y * 2}, r"y_test .*sample 1 has label 2"),
        ({"x_test": np.zeros((20, 4)), "y_test": Y}, "must agree"),
        ({"classes": np.array(["one"])}, "y_train .*sample 1 has label 1"),
    ],
)
def test_unusable_arrays_are_refused_by_name(tmp_path, arrays, complaint):
    with pytest.raises(InputError, match=complaint):
        load("npz", npz(tmp_path, **{"x_train": GOOD, "y_train": Y, **arrays}))


def test_damaged_archives_and_pickles_are_refused(tmp_path):
    path = tmp_path / "own.npz"
    options = npz(tmp_path, x_train=GOOD, y_train=Y)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole.replace(b"'descr'", b"'descx'")):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"own\.npz"):
            load("npz", options)
    npz(tmp_path, x_train=np.array([{"a": 1}] * 20, dtype=object), y_train=Y)
    with pytest.raises(FileError, match="never unpickles"):
        load("npz", options)
    with path.open("wb") as stream:
        np.save(stream, GOOD)
    with pytest.raises(FileError, match="without a name"):
        load("npz", options)
    with pytest.raises(FileError, match=r"absent\.npz"):
        load("npz", {"path": "absent.npz"})


def test_a_relative_path_is_found_below_data_dir(tmp_path):
    npz(tmp_path, x_train=GOOD, y_train=Y)
    assert load("npz", {"path": "own.npz"}, data_dir=tmp_path).shape == (3,)


def write_images(root, names=("cat", "dog"), count=10, size=(6, 5), mode="RGB"):
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            colour = (40 * label, number, 255) if mode == "RGB" else 10 * number
            Image.new(mode, size, colour).save(root / name / f"{number}.png")


def test_a_folder_for_each_class(tmp_path):
    write_images(tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "pets" / ".hidden").mkdir()
    data = load("folder", {"root": "pets"}, data_dir=tmp_path)
    assert (data.name, data.classes, data.shape) == ("pets", ("cat", "dog"), (3, 5, 6))
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 2, 4)
    assert torch.equal(data.train.x[:, 0, 0, 0].long(), 40 * data.train.y)
    assert (data.train.x[:, 2] == 255).all()
    again = load("folder", {"root": "pets"}, data_dir=tmp_path)
    assert torch.equal(data.train.x, again.train.x)


def test_training_and_test_folders_size_and_grey(tmp_path):
    write_images(tmp_path / "train", ("a", "b", "c"))
    write_images(tmp_path / "test", ("b", "c"), count=3, size=(9, 9))
    data = load("folder", {"root": tmp_path, "size": 4, "channels": 1, "validation": 0})
    assert data.shape == (1, 4, 4)
    assert len(data.train) == 30
    assert data.test.y.tolist() == [1, 1, 1, 2, 2, 2]


def test_images_that_differ_in_size_are_one_error_that_names_the_file(tmp_path):
    write_images(tmp_path)
    Image.new("RGB", (7, 5)).save(tmp_path / "dog" / "4.png")
    with pytest.raises(InputError, match=r"dog.4\.png has 5 x 7 pixels .*size="):
        load("folder", {"root": tmp_path})
    assert load("folder", {"root": tmp_path, "size": 8}).shape == (3, 8, 8)


def test_damaged_and_deep_images_are_refused_by_name(tmp_path):
    write_images(tmp_path)
    path = tmp_path / "cat" / "3.png"
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:40], whole[:-20]):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"cat.3\.png"):
            load("folder", {"root": tmp_path})
    Image.fromarray(np.full((5, 6), 40_000, np.uint16)).save(path)
    with pytest.raises(FileError, match="more than 8 bits"):
        load("folder", {"root": tmp_path})


def test_folders_that_are_not_a_dataset_are_refused(tmp_path):
    with pytest.raises(FileError, match="absent"):
        load("folder", {"root": tmp_path / "absent"})
    write_images(tmp_path / "one", ("cat",))
    with pytest.raises(FileError, match="1 class folders"):
        load("folder", {"root": tmp_path / "one"})
    write_images(tmp_path / "two" / "train")
    (tmp_path / "two" / "train" / "empty").mkdir()
    with pytest.raises(FileError, match="empty has no image"):
        load("folder", {"root": tmp_path / "two"})
    (tmp_path / "two" / "train" / "empty").rmdir()
    (tmp_path / "two" / "test").mkdir()
    with pytest.raises(FileError, match="no class folder"):
        load("folder", {"root": tmp_path / "two"})
    write_images(tmp_path / "two" / "test", ("cow",))
    with pytest.raises(InputError, match="cow is a class"):
        load("folder", {"root": tmp_path / "two"})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("npz", {"path": "x", "test": 1}),
        ("npz", {"path": "x", "layout": "middle"}),
        ("npz", {}),
        ("folder", {"root": "x", "size": 0}),
        ("folder", {"root": "x", "channels": 2}),
        ("folder", {"root": "x", "validation": -0.1}),
    ],
)
def test_impossible_options_are_refused(name, options):
    with pytest.raises(UsageError):
        load(name, options)
