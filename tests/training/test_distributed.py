"""Two processes train as one process with the same global batch does, and only the first writes."""

import json
import os
import random
import subprocess
import sys
import time

import pytest

# Adam divides gradients by their own size: where one is 0 but for rounding, which differs, so do its steps.
PLAIN = "training.optimiser={name: sgd, lr: 0.1, momentum: 0.9}"
TINY = ("training.epochs=2", "training.limit=96", "training.batch_size=32", PLAIN)
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


def both(commands, settings):
    """Return what processes print that end well together; one that fails ends the others."""
    started = [
        subprocess.Popen([sys.executable, *command], env=one, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for command, one in zip(commands, settings, strict=True)
    ]
    until = time.monotonic() + 240
    while any(process.poll() is None for process in started) and not any(process.poll() for process in started):
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    codes = [process.poll() for process in started]
    for process in started:
        process.kill()
    said = [process.communicate() for process in started]
    assert codes == [0] * len(started), said
    return [out for out, _ in said]


def port():
    """Return a port below those that the system hands out."""
    return str(random.SystemRandom().randint(20000, 32000))


def words_of(name, folder):
    return ["--threads", "1", "train", *RECIPES[name], "--out", str(folder / name), "--device", "cpu"]


ONE_AFTER_ANOTHER = """
import json, os, sys
from stalwart.cli.main import run

for name, port, words in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = port
    print("recipe", name, flush=True)
    try:
        run(words)
    except SystemExit as end:
        if end.code:
            raise
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Return the folder of runs in two processes each, by recipe, and what the two printed, by recipe."""
    folder = tmp_path_factory.mktemp("two")
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    first, *others = RECIPES
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port(), "-m", "stalwart"]
    said = {first: both([[*launch, *words_of(first, folder)]], [alone])[0]}
    # Most of the time goes into starting a process, so that two train all others; from here they get what torchrun tells.
    jobs = json.dumps([[name, port(), words_of(name, folder)] for name in others])
    shared = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    settings = [alone | shared | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(2)]
    for out in both([["-c", ONE_AFTER_ANOTHER, jobs]] * 2, settings):
        for part in out.split("recipe ")[1:]:
            name, _, text = part.partition("\n")
            said[name] = said.get(name, "") + text
    return folder, said


@pytest.mark.parametrize("name", list(RECIPES))
def test_two_processes_are_one(name, two, go, read_metrics, tmp_path):
    folder, said = two
    go(RECIPES[name], tmp_path)
    one, other = read_metrics(tmp_path), read_metrics(folder / name)
    assert len(one) == 2
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert b[key] == pytest.approx(a[key], abs=1e-5, rel=1e-5), key
    from safetensors.torch import load_file

    single, shared = (load_file(where / "model.safetensors") for where in (tmp_path, folder / name))
    for key in single:
        assert (single[key] - shared[key]).abs().max() < 1e-5, key
    assert tree(folder / name) == tree(tmp_path)
    # One process prints and writes: each epoch and the end are said once.
    assert said[name].count("epoch 1 ") == 1
    assert said[name].count("trained ") == 1


def test_one_process_on_other_noise_differs(go, read_metrics, tmp_path):
    """The tolerance above means something: noise that is not the single process's own moves the curve far more."""
    go(RECIPES["wca-pgd-at"], tmp_path / "one")
    from stalwart.core.random import shard

    with shard(1, 2):
        go(RECIPES["wca-pgd-at"], tmp_path / "other")
    one, other = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "other")
    assert abs(one[0]["train_loss"] - other[0]["train_loss"]) > 1e-3
