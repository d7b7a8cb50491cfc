"""A run that is killed at any moment and resumed ends with the same weights, bit for bit, and the same metrics."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from stalwart.core import files
from stalwart.core.errors import FileError, UsageError
from stalwart.training.loop import Fit

FILES = {"recipe.yaml", "model.safetensors", "metrics.jsonl", "checkpoint", "checkpoint/latest.safetensors"}


class Killed(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


def contents(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def command(words, folder, *more):
    start = [sys.executable, "-m", "stalwart", "--system-malloc", "--threads", "1", "train", *words]
    return [*start, "--out", str(folder), "--device", "cpu", "--no-download", *more]


@pytest.mark.parametrize(("kind", "kills"), [("noise", 2), ("sgd", 1)])
def test_kill_9_at_random_moments(kind, kills, kinds, whole, go, same, tmp_path):
    folder, seed = tmp_path / "run", random.SystemRandom().randrange(2**32)
    print(f"moments drawn from seed {seed}")
    moments, killed = random.Random(seed), 0
    checkpoint = folder / "checkpoint" / "latest.safetensors"
    for _ in range(kills):
        process = subprocess.Popen(command(kinds[kind], folder, *(["--resume"] if folder.exists() else [])))
        saves, seen, limit = moments.randint(1, 3), None, time.monotonic() + 120
        while saves and process.poll() is None and time.monotonic() < limit:
            now = checkpoint.stat().st_ino if checkpoint.exists() else None
            saves, seen = saves - (now is not None and now != seen), now
            time.sleep(0.002)
        time.sleep(moments.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 1, "every process finished before it was killed; the moments are too late"
    go(kinds[kind], folder, resume=True)
    same(folder, whole(kind))
    assert contents(folder) == FILES


@pytest.mark.parametrize("kind", ["noise", "sgd", "weights", "rows", "periods", "watched"])
def test_the_same_recipe_gives_the_same_run(kind, kinds, whole, go, same, tmp_path):
    go(kinds[kind], tmp_path)
    same(tmp_path, whole(kind))
    go([*kinds[kind], "seed=1"], tmp_path / "other")
    with pytest.raises(AssertionError):
        same(tmp_path / "other", whole(kind))


@pytest.mark.parametrize("kind", ["noise", "sgd", "weights", "rows", "periods", "watched"])
@hypothesis.settings(max_examples=4, deadline=None, derandomize=True)
@hypothesis.given(data=st.data())
def test_an_exception_inside_any_step(kind, kinds, whole, go, same, data):
    steps = 2 * 3
    breaks = data.draw(st.lists(st.integers(1, steps), min_size=1, max_size=2))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for step in breaks:
            with pytest.MonkeyPatch.context() as patch:
                _kill_in(patch, Fit, "_step", step)
                try:
                    go(kinds[kind], folder, resume=(folder / "recipe.yaml").exists())
                except Killed:
                    assert not (folder / "model.safetensors").exists()
        go(kinds[kind], folder, resume=True)
        same(folder, whole(kind))


@pytest.mark.parametrize("after", [False, True])
@hypothesis.settings(max_examples=8, deadline=None, derandomize=True)
@hypothesis.given(number=st.integers(1, 2 + 6 + 2 + 1))
def test_a_kill_at_any_file_that_is_written(after, number, kinds, whole, go, same):
    # Files change in os.replace only: probe, recipe, per step a checkpoint, with it the metrics, last the weights.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with pytest.MonkeyPatch.context() as patch:
            _kill_in(patch, files.os, "replace", number, after)
            with contextlib.suppress(Killed):
                go(kinds["sgd"], folder)
        go(kinds["sgd"], folder, resume=True)
        same(folder, whole("sgd"))


def _kill_in(patch, owner, name, number, after=False):
    original, count = getattr(owner, name), 0

    def dying(*arguments, **options):
        nonlocal count
        count += 1
        if count == number and not after:
            raise Killed
        result = original(*arguments, **options)
        if count == number:
            raise Killed
        return result

    patch.setattr(owner, name, dying)


def test_a_kill_between_the_last_checkpoint_and_its_metrics(kinds, whole, go, same, tmp_path, monkeypatch):
    from stalwart.training import loop

    def dying(path, text):
        if text.count("\n") == 2:
            raise Killed
        files.write_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_text", dying)
        with pytest.raises(Killed):
            go(kinds["sgd"], tmp_path)
    go(kinds["sgd"], tmp_path, resume=True)
    same(tmp_path, whole("sgd"))


def test_what_a_kill_left_half_written_is_swept_away(kinds, go, tmp_path):
    go(kinds["sgd"], tmp_path)
    (tmp_path / "checkpoint" / ".latest.safetensors.abcd.part").write_bytes(b"half")
    (tmp_path / ".model.safetensors.abcd.part").write_bytes(b"half")
    go(kinds["sgd"], tmp_path, resume=True)
    assert contents(tmp_path) == FILES


def test_resuming_a_finished_run_changes_nothing(kinds, go, whole, same, tmp_path):
    go(kinds["noise"], tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in sorted(FILES - {"checkpoint"})}
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "_step", lambda *a: calls.append(a))
        model = go(kinds["noise"], tmp_path, resume=True)
    assert not calls
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    same(tmp_path, whole("noise"))
    from safetensors.torch import load_file

    kept = load_file(tmp_path / "model.safetensors")
    assert all((kept[name] == tensor).all() for name, tensor in model.state_dict().items())


def test_another_recipe_is_refused_and_nothing_changes(kinds, go, tmp_path):
    go(kinds["sgd"], tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in FILES - {"checkpoint"}}
    for resume in (False, True):
        with pytest.raises(UsageError, match="another recipe"):
            go([*kinds["sgd"], "training.epochs=3"], tmp_path, resume)
    with pytest.raises(UsageError, match="finished run of this recipe; add --resume"):
        go(kinds["sgd"], tmp_path)
    # Somebody swaps the recipe file: the checkpoint itself still knows where it came from.
    (tmp_path / "recipe.yaml").unlink()
    with pytest.raises(FileError, match=r"no recipe\.yaml"):
        go([*kinds["sgd"], "training.epochs=3"], tmp_path, resume=True)
    with pytest.raises(FileError, match=r"no recipe\.yaml"):
        go([*kinds["sgd"], "training.epochs=3"], tmp_path)
    (tmp_path / "recipe.yaml").write_bytes(before["recipe.yaml"].replace(b"epochs: 2", b"epochs: 3"))
    with pytest.raises(FileError, match="another recipe"):
        go([*kinds["sgd"], "training.epochs=3"], tmp_path, resume=True)
    after = {name: (tmp_path / name).read_bytes() for name in FILES - {"checkpoint", "recipe.yaml"}}
    assert after == {name: value for name, value in before.items() if name != "recipe.yaml"}


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_checkpoint_is_refused(damage, kinds, go, tmp_path):
    go(kinds["sgd"], tmp_path)
    path = tmp_path / "checkpoint" / "latest.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes({"cut": bytes(content[: len(content) // 2]), "flip": bytes(content), "empty": b""}[damage])
    before = path.read_bytes()
    with pytest.raises(FileError, match=r"checkpoint .*latest\.safetensors"):
        go(kinds["sgd"], tmp_path, resume=True)
    assert path.read_bytes() == before


def test_a_mid_epoch_checkpoint_waits_its_time(kinds, go, tmp_path, monkeypatch):
    saves = []
    original = Fit._save
    monkeypatch.setattr(Fit, "_save", lambda fit: (saves.append(fit.progress.step), original(fit)))
    go([*kinds["sgd"], "training.checkpoint_seconds=1000"], tmp_path / "rare")
    assert saves == [3, 6]
    saves.clear()
    go(kinds["sgd"], tmp_path / "often")
    assert saves == [1, 2, 3, 4, 5, 6]
    assert os.listdir(tmp_path / "rare" / "checkpoint") == ["latest.safetensors"]
