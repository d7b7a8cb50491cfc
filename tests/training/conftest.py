"""Small runs on digits, started in this process the way the command line starts them."""

import json

import pytest
from safetensors.torch import load_file

from stalwart.recipes import load_recipe
from stalwart.recipes.runs import Source, train
from stalwart.training import Fit

TINY = ("training.epochs=2", "training.limit=96", "training.batch_size=32", "training.checkpoint_seconds=0")

KINDS = {
    # Randomness everywhere: learned noise, attack starts, augmentation, attacked validation; and a moving average.
    "noise": (
        "digits-wca",
        *TINY,
        "objective.base=pgd-at",
        "objective.options={eps: 0.1, steps: 2, eot: 2}",
        "data.augment={crop: 1, flip: true, cutout: 2}",
        "training.ema=0.8",
        "training.select=robust",
        "training.validation={attack: pgd, eps: 0.1, options: {steps: 2}, samples: 40}",
    ),
    "sgd": (
        "digits-natural",
        *TINY,
        "training.optimiser={name: sgd, lr: 0.05, momentum: 0.9, nesterov: true, weight_decay: 1e-3, clip: 1.0}",
        "training.schedule={name: cosine, warmup: 0.5}",
    ),
    "weights": ("digits-pni", *TINY, "objective={name: awp, base: trades, warmup: 1, options: {eps: 0.1, steps: 1}}"),
    # A hidden layer of 210 rows, of which each step moves some.
    "rows": (
        "digits-spiking-rat",
        *TINY,
        "model.hidden=210",
        "objective={name: rat, eps: 0.1, steps: 2, beta: 0.01}",
        "training.validation={attack: pgd, eps: 0.1, options: {steps: 2}, samples: 40}",
    ),
    # Several updates a batch.
    "periods": (
        "digits-spiking-hire",
        *TINY,
        "model.spiking.encoder={name: poisson}",
        "training.ema=0.8",
        "training.validation={attack: pgd, eps: 0.1, options: {steps: 2}, samples: 40}",
    ),
    "watched": (
        "digits-wca",
        *TINY,
        "objective={name: wca, base: fgsm-rs, options: {eps: 0.1}}",
        "training.schedule={name: cyclic}",
    ),
}


def weights(folder):
    """Return the handed-on weights of a run."""
    return load_file(folder / "model.safetensors")


def metrics(folder):
    """Return the lines of metrics.jsonl without the time they took."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_same_run(one, other):
    """Assert that two run folders hold bit-identical weights and equal metrics."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    different = [name for name in a if a[name].numpy().tobytes() != b[name].numpy().tobytes()]
    assert not different
    assert metrics(one) == metrics(other)


@pytest.fixture(scope="session")
def kinds():
    """Return recipes that differ in what must survive a kill."""
    return KINDS


@pytest.fixture(scope="session")
def go():
    """Return a function that trains a recipe with overrides into a folder."""

    def run(words, folder, resume=False):
        return train(load_recipe(words[0], words[1:]), folder, Source(download=False), resume, "cpu")

    return run


@pytest.fixture(scope="session")
def whole(go, tmp_path_factory):
    """Return a function that gives the folder of a kind's uninterrupted run."""
    folders = {}

    def folder(kind):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            go(KINDS[kind], folders[kind])
        return folders[kind]

    return folder


@pytest.fixture
def go_killed(go, monkeypatch):
    """Return a function that trains as ``go`` does, up to a kill after so many checkpoints."""

    def killed(words, folder, after):
        save, count = Fit._save, 0

        def dying(self):
            nonlocal count
            save(self)
            count += 1
            if count == after:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Fit, "_save", dying)
            with pytest.raises(KeyboardInterrupt):
                go(words, folder)

    return killed


@pytest.fixture(scope="session")
def same():
    """Return the comparison of two runs."""
    return assert_same_run


@pytest.fixture(scope="session")
def read_metrics():
    """Return the reader of metrics."""
    return metrics
