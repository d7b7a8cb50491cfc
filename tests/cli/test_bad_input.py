"""What is wrong with the input is said in one message, with the right exit code, and nothing is half-written."""

import errno
import resource

import numpy as np
import pytest

from stalwart.core import files


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def arrays(**changes):
    rng = np.random.default_rng(0)
    good = {
        "x_train": rng.random((40, 1, 8, 8), np.float32),
        "y_train": np.arange(40) % 4,
        "x_test": rng.random((8, 1, 8, 8), np.float32),
        "y_test": np.arange(8) % 4,
    }
    return {key: value for key, value in (good | changes).items() if value is not None}


def spoiled(value, at=(3, 0, 1, 1), part="x_train"):
    x = arrays()[part].copy()
    x[at] = value
    return {part: x}


BAD = {
    "nan": (spoiled(np.nan), "x_train", "hold NaN or infinity, first in sample 3"),
    "infinite": (spoiled(np.inf, part="x_test"), "x_test", "hold NaN or infinity, first in sample 3"),
    "above": (spoiled(1.5), "x_train", "must lie in [0, 1] but span"),
    "below": (spoiled(-0.2, part="x_test"), "x_test", "must lie in [0, 1] but span"),
    "flat": ({"x_train": np.zeros(40, np.float32)}, "x_train", "must have shape [N, ...]"),
    "ragged": (
        {"x_test": np.zeros((8, 1, 9, 9), np.float32)},
        "ragged",
        "training samples have shape [1, 8, 8] but test",
    ),
    "integers": ({"x_train": np.zeros((40, 1, 8, 8), np.int64)}, "x_train", "must be uint8"),
    "short": ({"y_train": np.zeros(39, int)}, "y_train", "39 labels for 40 inputs"),
    "label": ({"y_test": np.array([0, 1, 2, 3, 4, 0, 0, 0])}, "y_test", "sample 4 has label 4"),
    "negative": ({"y_train": np.arange(40) % 4 - 1}, "y_train", "sample 0 has label -1"),
    "floats": ({"y_train": np.zeros(40)}, "y_train", "must be integers"),
    "missing": ({"y_train": None}, "y_train", "has no array 'y_train'"),
    "objects": ({"x_train": np.array([{}] * 40)}, "npz", "never unpickles"),
}


def own(path, *more):
    return ("train", "digits-natural", f"data={{name: npz, path: {path}}}", *more, "--device", "cpu")


@pytest.mark.parametrize("name", list(BAD))
def test_arrays_that_cannot_be_used(name, refused, tmp_path, tiny):
    changes, place, message = BAD[name]
    path = tmp_path / f"{name}.npz"
    np.savez(path, **arrays(**changes))
    said = refused(1, *own(path, *tiny, "--out", tmp_path / "run"))
    assert message in said
    assert place in said
    assert set(tree(tmp_path)) == {path.name}, "a start that failed must not claim the folder"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_data_file(share, refused, tmp_path, tiny):
    path = tmp_path / "cut.npz"
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert f"cannot read {path} as .npz" in refused(1, *own(path, *tiny, "--out", tmp_path / "run"))


def test_good_arrays_train(stalwart, tmp_path, tiny):
    path = tmp_path / "good.npz"
    np.savez(path, **arrays())
    said = stalwart(*own(path, *tiny, "--out", tmp_path / "run"))
    assert (said.code, said.err) == (0, "")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("train", "digits-natural", "training.epoks=3"), 2, "unknown key 'training.epoks'. Did you mean 'epochs'?"),
        (("train", "digit-natural"), 2, "unknown recipe 'digit-natural'. Did you mean 'digits-natural'?"),
        (("train", "digits-natural", "training.epochs"), 2, "'training.epochs' is not an override"),
        (("train", "digits-natural", "training.epochs=many"), 2, "(got 'many')"),
        (("train", "digits-natural", "--device", "nonsense"), 2, "device 'nonsense' cannot be used"),
        (("train", "digits-natural", "--device", "meta"), 2, "device 'meta' cannot be used"),
        (("train", "digits-natural", "objective=wca"), 2, "objective"),
        (("train", "digits-natural", "objective={name: wca}"), 2, "needs a model with a WCA head"),
        (("train", "absent.yaml"), 1, "cannot read recipe absent.yaml"),
        (("train", "mnist-nowhere", "--no-download"), 2, "unknown recipe 'mnist-nowhere'"),
        (("train",), 2, "Missing argument"),
        (("train", "digits-natural", "--bogus"), 2, "No such option: --bogus"),
        (("bogus",), 2, "No such command 'bogus'"),
        (("list", "recipe"), 2, "nothing to list under 'recipe'. Did you mean 'recipes'?"),
        (("report", "absent"), 1, "absent"),
        (("evaluate",), 2, "name a run folder, or a foreign model"),
        (("evaluate", "absent"), 1, "absent is not a run: it has no recipe.yaml"),
        (("evaluate", "absent", "--samples", "0"), 2, "--samples"),
        (("evaluate", "--model", "torch.nn:ReLU"), 2, "a foreign model needs --dataset"),
        (("evaluate", "--model", "torch.nn:ReLU", "--dataset", "digit"), 2, "Did you mean 'digits'?"),
    ],
)
def test_wrong_calls(words, code, message, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(code, *words)
    assert not any(name.endswith((".part", ".safetensors", "json", "csv", "html")) for name in tree(tmp_path))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--eps", "abc"), 2, "eps: 'abc' is not a number"),
        (("--eps", "-0.1"), 2, "'eps': Input should be greater than or equal to 0"),
        (("--eps", "nan"), 2, "eps: 'nan' is not a finite number"),
        (("--curve", "0.1,-0.2"), 2, "'curve.1'"),
        (("--curve", "0.1,,"), 2, "curve.1"),
        (("--suite", "quik"), 2, "unknown suite 'quik'. Did you mean 'quick'?"),
        (("--norm", "l7"), 2, "'norm'"),
        (("--rule", "best"), 2, "'rule'"),
        (("--device", "nonsense"), 2, "device 'nonsense' cannot be used"),
        (("--weights", "x.safetensors"), 2, "--weights and --dataset belong to --model"),
        (("--model", "torch.nn:ReLU"), 2, "one of the two"),
    ],
)
def test_wrong_evaluations(words, code, message, refused, copied):
    before = tree(copied)
    assert message in refused(code, "evaluate", copied, *words)
    assert tree(copied) == before


def test_a_run_that_is_not_finished(refused, copied):
    (copied / "model.safetensors").unlink()
    before = tree(copied)
    said = refused(1, "evaluate", copied)
    assert "has no model.safetensors: its training has not finished" in said
    assert "--resume" in said
    assert tree(copied) == before


@pytest.mark.parametrize("damage", ["cut", "header", "data", "empty"])
def test_a_damaged_model(damage, refused, copied, quick):
    path = copied / "model.safetensors"
    content = bytearray(path.read_bytes())
    if damage in ("header", "data"):
        content[20 if damage == "header" else -9] ^= 0x01
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(damage, content))
    before = tree(copied)
    said = refused(1, "evaluate", copied, *quick)
    assert f"model {path}" in said
    assert tree(copied) == before


def test_a_damaged_checkpoint(refused, copied):
    path = copied / "checkpoint" / "latest.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    before = tree(copied)
    said = refused(1, "train", copied / "recipe.yaml", "--out", copied, "--resume", "--device", "cpu")
    assert f"checkpoint {path} is not a valid safetensors file" in said
    assert tree(copied) == before


@pytest.mark.parametrize("text", ["- a list", "name: [a\nb: }", "name: x", ""])
def test_a_damaged_recipe_or_metrics(text, refused, copied, quick):
    (copied / "recipe.yaml").write_text(text)
    code = 1 if "}" in text else 2
    assert str(copied / "recipe.yaml") in refused(code, "evaluate", copied, *quick)


def test_damaged_metrics_and_reports(refused, copied, quick, tmp_path):
    with (copied / "metrics.jsonl").open("a") as stream:
        stream.write('{"epoch": 3, "tra')
    assert f"metrics {copied / 'metrics.jsonl'} are damaged" in refused(1, "evaluate", copied, *quick)
    assert "has no report.json; run `stalwart evaluate" in refused(1, "report", copied, "--out", tmp_path / "r")
    (copied / "report.json").write_text('{"runs": [')
    assert "report.json is not valid JSON" in refused(1, "report", copied, "--out", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_another_run_in_the_folder(refused, copied, tiny):
    before = tree(copied)
    out = ("--out", copied, "--device", "cpu")
    assert "holds a run of another recipe" in refused(2, "train", "digits-wca", *out)
    assert "holds a run of another recipe" in refused(2, "train", "digits-natural", "seed=1", *tiny, *out, "--resume")
    assert "add --resume to go on" in refused(2, "train", "digits-natural", *tiny, *out)
    assert tree(copied) == before


def test_folders_that_cannot_be_written(refused, copied, quick, tmp_path):
    (tmp_path / "file").write_text("I am a file")
    before = tree(tmp_path)
    below = tmp_path / "file" / "run"
    assert f"cannot write {below}" in refused(1, "train", "digits-natural", "--out", below, "--device", "cpu")
    assert f"cannot write {tmp_path / 'file'}" in refused(1, "train", "digits-natural", "--out", tmp_path / "file")
    assert f"cannot write {below}" in refused(1, "evaluate", copied, *quick, "--out", below)
    assert f"cannot write {below}" in refused(1, "demo", "--out", below)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses(number, refused, copied, quick, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(number, "the disk refuses")

    before = tree(copied)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fail)
        said = refused(1, "evaluate", copied, *quick)
        assert said.startswith(f"cannot write {copied}")
        assert "the disk refuses" in said
        refused(1, "train", "digits-natural", "--out", tmp_path / "new", "--device", "cpu")
    assert tree(copied) == before
    assert not tree(tmp_path / "new")


def test_a_disk_that_fills_up_during_training(refused, tmp_path, tiny):
    """Files may grow to 20 kB only, so the recipe fits and the first checkpoint does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        said = refused(1, "train", "digits-natural", *tiny, "--out", tmp_path, "--device", "cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert said.startswith(f"cannot write {tmp_path / 'checkpoint' / 'latest.safetensors'}: File too large")
    assert set(tree(tmp_path)) == {"recipe.yaml"}


def test_a_loss_that_is_not_finite(refused, tmp_path, tiny):
    words = ("training.optimiser.lr=1e30", "--out", tmp_path / "run", "--device", "cpu")
    said = refused(1, "train", "digits-natural", *tiny, *words)
    assert said.startswith("the loss became nan at step 1 (epoch 1); lower the learning rate")
    assert "model.safetensors" not in tree(tmp_path / "run")


def test_data_that_is_nowhere(stalwart, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("STALWART_DATA", raising=False)
    said = stalwart("train", "svhn-resnet18-wca", "--no-download", "--out", tmp_path / "run", "--device", "cpu")
    assert said.code == 1
    assert said.err.startswith("error: dataset 'svhn' was not found")
    assert "Downloading is switched off" in said.err
    assert "Traceback" not in said.err
    assert not tree(tmp_path)
