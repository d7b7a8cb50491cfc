"""Certifying a data set: resumed runs, damaged files, and the numbers of the summary."""

import json
import math

import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from stalwart.certify.smoothing import Smoothing
from stalwart.certify.smoothing_run import RADII, SAMPLES, SUMMARY, certified_accuracy_curve, certify_dataset
from stalwart.core.errors import FileError, InputError, UsageError
from stalwart.core.random import derive, generator
from stalwart.core.registry import build
from stalwart.data import epoch_batches
from stalwart.data.table import DATASETS
from stalwart.models import build_model
from stalwart.objectives import OBJECTIVES, Moment, Trainee

SMOOTHING = Smoothing(0.5, n0=20, n=100)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3))


@pytest.fixture
def data():
    return torch.rand(6, 1, 4, 4, generator=generator(1)), torch.arange(6) % 3


def files(folder):
    return (folder / SAMPLES).read_bytes(), (folder / SUMMARY).read_bytes()


class Killed(Exception):
    pass


def killed_after(samples):
    def advance(done, note=""):
        if done == samples:
            raise Killed

    return advance


@pytest.mark.parametrize("samples", [1, 3, 6])
@pytest.mark.parametrize("torn", [b"", b'{"index": 3, "lab', b"{"])
def test_a_killed_run_ends_with_the_same_bytes(net, data, tmp_path, samples, torn):
    whole = certify_dataset(net, *data, SMOOTHING, tmp_path / "whole", seed=4)
    with pytest.raises(Killed):
        certify_dataset(net, *data, SMOOTHING, tmp_path / "cut", seed=4, advance=killed_after(samples))
    assert not (tmp_path / "cut" / SUMMARY).exists()
    assert net.training, "the model is handed back even so"
    with (tmp_path / "cut" / SAMPLES).open("ab") as stream:
        stream.write(torn)
    seen = []
    again = certify_dataset(
        net, *data, SMOOTHING, tmp_path / "cut", seed=4, advance=lambda done, note="": seen.append(done)
    )
    assert seen == list(range(samples + 1, 7)), "what was certified is not certified again"
    assert again == whole
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_torn_first_line_and_an_empty_file_start_afresh(net, data, tmp_path):
    certify_dataset(net, *data, SMOOTHING, tmp_path / "whole")
    for number, content in enumerate((b"", b'{"kind": "smoo')):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / SAMPLES).write_bytes(content)
        certify_dataset(net, *data, SMOOTHING, folder)
        assert files(folder) == files(tmp_path / "whole")


def test_a_finished_run_is_read_not_repeated(net, data, tmp_path):
    first = certify_dataset(net, *data, SMOOTHING, tmp_path)
    net.register_forward_hook(lambda *_: pytest.fail("it runs again"))
    assert certify_dataset(net, *data, SMOOTHING, tmp_path) == first
    other = certify_dataset(net, *data, Smoothing(0.5, n0=20, n=100, batch=7), tmp_path, radii=["1/4"])
    assert [point.radius for point in other.curve] == [0.25], "radii and batch size are free"


def test_certificates_of_something_else_are_not_mixed(net, data, tmp_path):
    certify_dataset(net, *data, SMOOTHING, tmp_path)
    x, y = data
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3))
    calls = [
        (net, x, y, Smoothing(0.25, n0=20, n=100), 0),
        (net, x, y, Smoothing(0.5, n0=20, n=101), 0),
        (net, x, y, SMOOTHING, 1),
        (net, 1 - x, y, SMOOTHING, 0),
        (net, x, y.flip(0), SMOOTHING, 0),
        (net, x[:5], y[:5], SMOOTHING, 0),
        (other, x, y, SMOOTHING, 0),
    ]
    for model, inputs, labels, smoothing, seed in calls:
        with pytest.raises(UsageError, match="another model, other data or other settings"):
            certify_dataset(model, inputs, labels, smoothing, tmp_path, seed)


def test_damage_before_the_last_line_is_an_error(net, data, tmp_path):
    certify_dataset(net, *data, SMOOTHING, tmp_path)
    lines = (tmp_path / SAMPLES).read_bytes().splitlines(keepends=True)
    (tmp_path / SAMPLES).write_bytes(b"".join([*lines[:3], b"{torn\n", *lines[4:]]))
    with pytest.raises(FileError, match="damaged in line 4"):
        certify_dataset(net, *data, SMOOTHING, tmp_path)
    (tmp_path / SAMPLES).write_bytes(b"".join([*lines[:3], *lines[4:]]))
    with pytest.raises(FileError, match="lack sample 2"):
        certify_dataset(net, *data, SMOOTHING, tmp_path)
    (tmp_path / SAMPLES).write_bytes(b"".join([*lines, lines[-1].replace(b'"index": 5', b'"index": 6')]))
    with pytest.raises(FileError, match="more than 6 samples"):
        certify_dataset(net, *data, SMOOTHING, tmp_path)


def test_a_folder_that_cannot_be_written(net, data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        certify_dataset(net, *data, SMOOTHING, tmp_path / "file")


def test_radii_are_checked_before_the_work(net, data, tmp_path):
    for radii in ([-0.25], ["a"]):
        with pytest.raises(UsageError, match=r"at least 0, got -0\.25|'a' is not a number"):
            certify_dataset(net, *data, SMOOTHING, tmp_path, radii=radii)
    assert not (tmp_path / SAMPLES).exists()


def test_labels_are_checked(net, data, tmp_path):
    with pytest.raises(InputError, match="5 labels for 6 inputs"):
        certify_dataset(net, data[0], data[1][:5], SMOOTHING, tmp_path)


def test_the_rows_are_the_certificates_and_the_summary_counts_them(net, data, tmp_path):
    x, y = data
    summary = certify_dataset(net, x, y, SMOOTHING, tmp_path, seed=4)
    alone = SMOOTHING.certify(net, x, seed=4)
    head, *rows = map(json.loads, (tmp_path / SAMPLES).read_text().splitlines())
    assert (head["sigma"], head["n0"], head["n"], head["alpha"], head["seed"], head["samples"]) == (
        0.5, 20, 100, 0.001, 4, 6,
    )  # fmt: skip
    assert [row["index"] for row in rows] == list(range(6))
    assert [row["label"] for row in rows] == y.tolist()
    for field in ("prediction", "radius", "guess", "votes", "p_lower"):
        assert [row[field] for row in rows] == getattr(alone, field).tolist()
    right = alone.prediction == y
    assert summary.right == int(right.sum())
    assert summary.abstained == int((alone.prediction == -1).sum())
    assert summary.right + summary.wrong + summary.abstained == summary.samples == 6
    earned = [r if good else 0.0 for r, good in zip(alone.radius.tolist(), right.tolist(), strict=True)]
    mean = sum(earned) / 6
    spread = math.sqrt(sum((one - mean) ** 2 for one in earned) / 5)
    assert summary.acr == pytest.approx(mean)
    assert summary.acr_high == pytest.approx(min(summary.largest_radius, mean + 1.96 * spread / math.sqrt(6)), rel=1e-4)
    assert summary.acr_low == pytest.approx(max(0.0, mean - 1.96 * spread / math.sqrt(6)), rel=1e-4)
    assert [point.radius for point in summary.curve] == list(RADII)
    stored = json.loads((tmp_path / SUMMARY).read_text())
    assert stored["acr"] == summary.acr
    assert stored["curve"][0]["certified"] == summary.right


def test_one_sample_leaves_the_radius_open(net, data, tmp_path):
    summary = certify_dataset(net, data[0][:1], data[1][:1], SMOOTHING, tmp_path)
    assert (summary.acr_low, summary.acr_high) == (0.0, summary.largest_radius)


def test_the_curve_by_hand():
    radius = torch.tensor([0.0, 0.3, 0.5, 0.5, 1.0], dtype=torch.float64)
    right = torch.tensor([False, True, True, False, True])
    curve = certified_accuracy_curve(radius, right, [0.0, 0.25, 0.5, 0.75, 1.0], alpha=0.001)
    assert [point.certified for point in curve] == [3, 3, 1, 1, 0], "R > r, not R >= r"
    for point in curve:
        interval = binomtest(point.certified, 5).proportion_ci(0.95, method="exact")
        assert point.value == point.certified / 5
        assert point.low == pytest.approx(max(0.0, interval.low - 0.001), abs=1e-9)
        assert point.high == pytest.approx(interval.high, abs=1e-9)
    with pytest.raises(UsageError, match="at least 0"):
        certified_accuracy_curve(radius, right, [-0.1], alpha=0.001)
    with pytest.raises(UsageError, match="no samples"):
        certified_accuracy_curve(radius[:0], right[:0], [0.0], alpha=0.001)


def trained(name, data, epochs, **options):
    model = build_model("small-cnn", (1, 8, 8), 10)
    trainee = Trainee(model, build("objective", OBJECTIVES, name, options))
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    step = 0
    for epoch in range(epochs):
        for index in epoch_batches(len(data), 64, 0, epoch, 0, 1):
            optimiser.zero_grad()
            trainee(*data.batch(index), Moment(derive(0, step), epoch))[0].backward()
            optimiser.step()
            step += 1
    return model


def test_training_on_noise_earns_radius(tmp_path):
    data = build("dataset", DATASETS, "digits", {}).load()
    x, y = data.test.take(60).batch(slice(None))
    found = {}
    for name in ("natural", "smooth-gaussian"):
        model = trained(name, data.train, 12)
        found[name] = certify_dataset(model, x, y, Smoothing(0.4, n=300), tmp_path / name)
    assert found["smooth-gaussian"].acr > 1.2 * found["natural"].acr
    assert found["smooth-gaussian"].right >= 45
