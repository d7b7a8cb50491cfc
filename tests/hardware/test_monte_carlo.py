"""Accuracies of many chips, their file and their summary."""

import pytest
import torch
from chip_networks import assert_same, cnn, images, snapshot
from torch import nn

from stalwart.core.errors import FileError, InputError, UsageError
from stalwart.core.random import derive, generator
from stalwart.core.registry import build, options_of
from stalwart.core.tensors import load_tensors
from stalwart.hardware import (
    FAULTS,
    PCM,
    ActivationQuantise,
    BitFlips,
    Fault,
    Mismatch,
    OutputNoise,
    Quantise,
    StuckAt,
    accuracies,
    summarise,
)
from stalwart.spiking import LIF
from stalwart.stochastic import inject

X = images(120)


def labels(model):
    with torch.no_grad():
        return model(X).argmax(1)


def test_each_chip_is_judged_as_by_hand_and_the_model_is_untouched():
    model = cnn().train()
    model[0].weight.requires_grad_(False)
    y = labels(model.eval())
    before = snapshot(model.train())
    device = Quantise(6) | Mismatch(0.5)
    found = accuracies(model, device, X, y, chips=4, seed=3, batch=50)
    assert_same(before, snapshot(model))
    assert model.training
    model.eval()
    for number in range(4):
        with device.chip(model, derive(3, "chip", number)):
            assert float(found[number]) == float((model(X).argmax(1) == y).double().mean())
    assert found.dtype == torch.float64
    assert len(found.unique()) > 1
    torch.testing.assert_close(accuracies(model, device, X, y, chips=2, seed=3, batch=7), found[:2])


def test_accuracy_falls_with_the_level():
    model = cnn()
    y = labels(model)
    means = [float(accuracies(model, Mismatch(level), X, y, 20, 0).mean()) for level in (0.0, 0.2, 0.4, 0.8)]
    assert means[0] == 1.0
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.97


def test_every_kind_of_fault_runs():
    model = cnn()
    y = labels(model)
    device = (
        Quantise(8) | Mismatch(0.1) | StuckAt(0.01) | BitFlips(0.01) | PCM() | OutputNoise(0.05) | ActivationQuantise(8)
    )
    found = accuracies(model, device, X, y, 3, 0)
    assert torch.equal(found, accuracies(model, device, X, y, 3, 0))
    assert bool((found > 0.3).all())


def test_randomised_models_repeat():
    model = inject(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), alpha=1.0)
    y = torch.zeros(120, dtype=torch.long)
    found = [accuracies(model, Mismatch(0.3), X, y, 3, 0) for _ in range(2)]
    assert torch.equal(*found)


def test_a_tie_is_an_error():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    assert accuracies(model, Quantise(8), X, torch.zeros(120, dtype=torch.long), 1, 0).tolist() == [0.0]


@pytest.mark.parametrize(
    "device", [Mismatch(0.1), Mismatch(0.1, fresh=True), Quantise(8) | Mismatch(0.2), Mismatch(0.1, "log-normal")]
)
def test_a_fault_that_changes_nothing_is_refused(device):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3, bias=False))
    nn.init.zeros_(model[1].weight)
    with pytest.raises(InputError, match="same parameters as the model: mismatch"):
        accuracies(model, device, X, torch.zeros(120, dtype=torch.long), 1, 0)
    assert accuracies(model, Mismatch(0.0), X, torch.zeros(120, dtype=torch.long), 1, 0).tolist() == [0.0]


class Past(nn.Module):
    """A network that uses one layer's weights without calling it."""

    def __init__(self):
        super().__init__()
        self.body, self.side = nn.Linear(36, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.body(x.flatten(1)) @ self.side.weight


def test_layers_that_are_never_called_are_named():
    y = torch.zeros(120, dtype=torch.long)
    with pytest.raises(InputError, match="uses side without calling.*Choose other layers"):
        accuracies(Past(), Mismatch(0.1) | OutputNoise(0.1), X, y, 1, 0)
    assert len(accuracies(Past(), Mismatch(0.1) | OutputNoise(0.1, only="body"), X, y, 1, 0)) == 1


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    model = cnn()
    y = labels(model)
    path = tmp_path / "chips.safetensors"
    monkeypatch.setattr("stalwart.hardware.monte_carlo._SAVE_EVERY", -1.0)
    whole = accuracies(model, Mismatch(0.5), X, y, 6, 0)

    def kill(done, note=""):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        accuracies(model, Mismatch(0.5), X, y, 6, 0, path=path, advance=kill)
    assert load_tensors(path, "chips")[0]["accuracies"].tolist() == whole[:3].tolist()
    seen = []
    again = accuracies(model, Mismatch(0.5), X, y, 6, 0, path=path, advance=lambda done, note="": seen.append(done))
    assert torch.equal(again, whole)
    assert seen == [4, 5, 6]
    assert torch.equal(accuracies(model, Mismatch(0.5), X, y, 2, 0, path=path), whole[:2])
    assert len(load_tensors(path, "chips")[0]["accuracies"]) == 6
    assert [file.name for file in tmp_path.iterdir()] == ["chips.safetensors"]


def test_a_file_of_another_experiment_is_refused(tmp_path):
    model, path = cnn(), tmp_path / "chips.safetensors"
    y = labels(model)
    accuracies(model, Mismatch(0.5), X, y, 1, 0, path=path)
    for call in (
        lambda: accuracies(model, Mismatch(0.4), X, y, 1, 0, path=path),
        lambda: accuracies(model, Mismatch(0.5), X, y, 1, 1, path=path),
        lambda: accuracies(cnn(1), Mismatch(0.5), X, y, 1, 0, path=path),
        lambda: accuracies(model, Mismatch(0.5), X[:60], y[:60], 1, 0, path=path),
    ):
        with pytest.raises(FileError, match="another model, device"):
            call()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FileError, match="not a valid"):
        accuracies(model, Mismatch(0.5), X, y, 1, 0, path=path)


def test_bad_calls():
    model, y = cnn(), torch.zeros(120, dtype=torch.long)
    for options, error, says in (
        ({"chips": 0}, UsageError, "chips must"),
        ({"batch": 0}, UsageError, "batch must"),
        ({"y": y[:3]}, InputError, "3 labels for 120 inputs"),
        ({"y": y + 3}, InputError, r"in \[0, 3\)"),
        ({"x": X[:0], "y": y[:0]}, InputError, "no inputs"),
        ({"model": nn.Conv2d(1, 3, 3)}, InputError, r"logits \[B, K\]"),
    ):
        with pytest.raises(error, match=says):
            accuracies(**{"model": model, "device": Mismatch(0.1), "x": X, "y": y, "chips": 1, "seed": 0} | options)


def test_summary_by_hand():
    values = torch.linspace(0.5, 0.9, 41, dtype=torch.float64)
    found = summarise(values, baseline=0.95)
    assert found.chips == 41
    assert found.mean == pytest.approx(0.7)
    assert found.std == pytest.approx(float(values.std()))
    assert found.minimum == 0.5
    assert found.low == pytest.approx(0.52)
    assert found.drop == pytest.approx(0.25)
    assert found.worst_drop == pytest.approx(0.45)
    # The bootstrap of a mean is the normal interval of n, not of n - 1.
    half = 1.96 * float(values.std(correction=0)) / 41**0.5
    assert found.interval == (pytest.approx(0.7 - half, abs=0.003), pytest.approx(0.7 + half, abs=0.003))
    assert summarise(values) == summarise(values)
    assert summarise(values).drop is None
    assert summarise(values).worst_drop is None


def test_summary_of_one_chip_and_of_nonsense():
    one = summarise(torch.tensor([0.5]))
    assert (one.std, one.interval) == (0.0, (0.5, 0.5))
    with pytest.raises(InputError, match=r"in \[0, 1\], got 0.5 to 10000"):
        summarise(torch.tensor([0.5, 10_000.0]))
    with pytest.raises(InputError, match=r"in \[0, 1\], got 95"):
        summarise(torch.tensor([0.5]), baseline=95.0)
    with pytest.raises(InputError, match=r"shape \[chips\]"):
        summarise(torch.tensor([]))
    with pytest.raises(UsageError, match="resamples"):
        summarise(torch.tensor([0.5]), resamples=0)


def test_intervals_cover_the_mean():
    covered = 0
    for seed in range(200):
        values = 0.8 + 0.05 * torch.randn(30, generator=generator(seed), dtype=torch.float64)
        low, high = summarise(values.clamp(0, 1), seed=seed, resamples=500).interval
        covered += low <= 0.8 <= high
    assert covered > 175


def test_table_builds_every_fault_from_text():
    needed = {"mismatch": {"level": "1/10"}, "bit-flips": {"rate": "1e-3"}, "stuck-at": {"share": 0.1}}
    needed |= {"quantise": {"bits": 8}, "activation-quantise": {"bits": 8}, "output-noise": {"level": 0.1}}
    needed |= {"neuron-mismatch": {"level": "1/10"}, "membrane-noise": {"level": 0.1}}
    for name in FAULTS:
        fault = build("fault", FAULTS, name, {**needed.get(name, {}), "only": ["*6*"]})
        assert isinstance(fault, Fault)
        assert "only" in options_of(type(fault))
        # Its layer 6 has neurons beside weights.
        model = nn.Sequential(*cnn()[:6], nn.Sequential(nn.Linear(8, 3), LIF()))
        with fault.chip(model, 0):
            pass
    assert build("fault", FAULTS, "mismatch", {"level": "1/10", "mode": "range"}) == Mismatch(0.1, "range")
    with pytest.raises(UsageError, match="write 0.05"):
        build("fault", FAULTS, "mismatch", {"level": "5"})
