"""Two processes train as one process with the same global batch does, and only the first writes."""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

TINY = ("training.epochs=2", "training.limit=96", "training.batch_size=32")
RECIPES = {
    "natural": ("digits-natural", *TINY, "data.augment={crop: 1, flip: true}"),
    # Every kind of randomness that must be cut along the batch; noise and attack in validation, where it must not.
    "wca-pgd-at": (
        "digits-wca",
        *TINY,
        "objective.base=pgd-at",
        "objective.options={eps: 0.1, steps: 2}",
        "training.ema=0.5",
        "training.validation={attack: pgd, eps: 0.05, options: {steps: 2, eot: 2}, samples: 50}",
    ),
    # Weights that move alike in all processes.
    "weight-kl": ("digits-weight-kl", *TINY, "objective.steps=2", "objective.forward_noise=0.1"),
    "asam": ("digits-natural", *TINY, "objective={name: sam, adaptive: true, rho: 0.5}"),
    "entropy-sgd": ("digits-natural", *TINY, "objective={name: entropy-sgd, steps: 2, noise: 0.01}"),
    "abcd": ("digits-natural", *TINY, "objective={name: abcd, climb: 0.1, steps: 2}"),
    "randbet": ("digits-natural", *TINY, "objective={name: randbet, rate: 0.05, start: 100, clip: null}"),
    # Several updates a batch, with inputs and membranes handed from one to the next.
    "hire": (
        "digits-spiking-hire",
        *TINY,
        "objective.gradient=shared",
        "training.validation={attack: pgd, eps: 0.05, options: {steps: 2}, samples: 50}",
    ),
}


def tree(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def free_ports(count):
    """Return ports that nobody listens at now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture(scope="module")
def twos(tmp_path_factory):
    """Return the folder in which two processes trained every recipe, one after the other."""
    folder = tmp_path_factory.mktemp("two")
    jobs = [
        (words, str(folder / name), port)
        for (name, words), port in zip(RECIPES.items(), free_ports(len(RECIPES)), strict=True)
    ]
    script = str(Path(__file__).with_name("two_ranks.py"))
    start = [[sys.executable, script, rank, json.dumps(jobs)] for rank in "01"]
    pair = [subprocess.Popen(one, env={**os.environ, "OMP_NUM_THREADS": "1"}) for one in start]
    try:
        assert [one.wait(timeout=480) for one in pair] == [0, 0]
    finally:
        for one in pair:
            one.kill()
            one.wait()
    return folder


def assert_two_are_one(both, single, read_metrics, said):
    one, two = read_metrics(single), read_metrics(both)
    assert len(one) == 2
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert b[key] == pytest.approx(a[key], abs=1e-5, rel=1e-5), key
    alone, shared = load_file(single / "model.safetensors"), load_file(both / "model.safetensors")
    for key in alone:
        assert (alone[key] - shared[key]).abs().max() < 1e-4, key
    assert tree(both) == tree(single)
    # One process prints and writes: each epoch and the end are said once.
    assert said.count("epoch 1 ") == 1
    assert said.count("trained ") == 1


@pytest.mark.parametrize("name", list(RECIPES))
def test_two_processes_are_one(name, twos, go, read_metrics, tmp_path):
    left = [json.loads((twos / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]
    said, problems = (
        "".join((twos / f"{name}.{rank}.{stream}").read_text() for rank in (0, 1)) for stream in ("out", "err")
    )
    assert [one["code"] for one in left] == [0, 0], problems
    go(RECIPES[name], tmp_path / "one")
    assert_two_are_one(twos / name, tmp_path / "one", read_metrics, said)
    assert [one["threads"] for one in left] == [[], []], "a thread that outlives its group can abort the process's end"


def test_torchrun_starts_them(go, read_metrics, tmp_path):
    port = str(random.SystemRandom().randint(20000, 60000))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    run = ["-m", "stalwart", "--threads", "1", "train", *RECIPES["natural"], "--out", str(tmp_path / "two")]
    done = subprocess.run(
        [*launch, *run, "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    go(RECIPES["natural"], tmp_path / "one")
    assert_two_are_one(tmp_path / "two", tmp_path / "one", read_metrics, done.stdout)


def test_one_process_on_other_noise_differs(go, read_metrics, tmp_path):
    """The tolerance above means something: noise that is not the single process's own moves the curve far more."""
    go(RECIPES["wca-pgd-at"], tmp_path / "one")
    from stalwart.core.random import shard

    with shard(1, 2):
        go(RECIPES["wca-pgd-at"], tmp_path / "other")
    one, other = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "other")
    assert abs(one[0]["train_loss"] - other[0]["train_loss"]) > 1e-3
