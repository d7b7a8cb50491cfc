"""The corruptions block: every kind at every severity, the same images for every model, the mean, and where it is asked for."""

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.data.corruptions import CORRUPTIONS, corruption
from stalwart.evaluation.corruptions import corrupt, measure, steps
from stalwart.report import Report
from stalwart.report.html import render


class Dark(nn.Module):
    """Class 1 where an image is bright on the whole."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], 1)


X = (
    0.35
    + 0.3 * torch.rand(40, 3, 8, 8, generator=generator(0)) ** torch.tensor([0.5, 2.0]).repeat(20)[:, None, None, None]
)
Y = torch.tensor([1, 0]).repeat(20)


def test_every_kind_is_measured_on_the_images_that_it_gives(plain, images):
    x, y = images
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    told = []
    found = measure(plain, x, y, seed=3, severities=(1, 4), advance=lambda done, note="": told.append((done, note)))
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert told == list(enumerate(CORRUPTIONS, 1))
    assert len(told) == steps()
    assert [row.corruption for row in found.rows] == list(CORRUPTIONS)
    (grey,) = [row for row in found.rows if row.refused]
    assert grey.corruption == "saturate"
    assert "needs images of 3 channels, got 1" in grey.refused
    rows = {row.corruption: row for row in found.rows if not row.refused}
    for name in ("fog", "motion_blur"):
        for severity, rate in zip((1, 4), rows[name].accuracy, strict=True):
            images_now = corruption(name, severity=severity)(x, generator(3, "corruption", name, severity))
            assert rate.correct == int((plain(images_now).argmax(1) == y).sum())
    values = [rate.value for row in rows.values() for rate in row.accuracy]
    assert found.mean.value == pytest.approx(sum(values) / len(values))
    assert found.mean.low < found.mean.value < found.mean.high
    assert found.clean.correct == int((plain(x).argmax(1) == y).sum())
    assert rows["fog"].mean == pytest.approx(sum(rate.value for rate in rows["fog"].accuracy) / 2)
    assert found == measure(plain, x, y, seed=3, severities=(1, 4))


def test_brightness_pushes_dark_images_over():
    found = measure(Dark(), X, Y)
    rows = {row.corruption: [rate.value for rate in row.accuracy] for row in found.rows}
    assert found.clean.value == 1
    assert not any(row.refused for row in found.rows)
    assert rows["brightness"][4] == 0.5
    assert rows["contrast"] == [1.0] * 5, "the mean stays"
    assert (found.scale, found.severities, found.samples) == ("small", [1, 2, 3, 4, 5], 40)


def test_parts_of_a_large_set_continue_one_stream(monkeypatch):
    monkeypatch.setattr("stalwart.evaluation.corruptions._VALUES", 3 * 64 * 15)
    parts = corrupt(X, "gaussian_noise", 2)
    assert parts.shape == X.shape
    source = generator(0, "corruption", "gaussian_noise", 2)
    change = corruption("gaussian_noise", severity=2)
    assert torch.equal(parts, torch.cat([change(part, source) for part in X.split(15)]))


def test_a_randomised_model_is_judged_by_its_rule(noisy, images):
    x, y = images
    single, mean = (measure(noisy, x, y, severities=(1,), rule=rule) for rule in ("single", "mean-network"))
    assert mean.clean.value > single.clean.value
    assert mean.mean.value > single.mean.value


def test_suites_and_severities(tmp_path):
    asked = {"within": sw.Linf(0.02)}
    report = sw.evaluate(Dark(), (X, Y), suite="corruptions", **asked)
    assert report.runs[0].corruptions.severities == [1, 2, 3, 4, 5]
    page = render(report)
    assert "Mean corruption accuracy" in page
    assert "defocus blur" in page
    assert "CIFAR-10-C" in page
    report.save(tmp_path)
    assert Report.load(tmp_path) == report
    few = sw.evaluate(Dark(), (X, Y), suite="quick", corruptions=[5], **asked)
    assert few.runs[0].corruptions.severities == [5]
    none = sw.evaluate(Dark(), (X, Y), suite="corruptions", corruptions=[], **asked)
    assert none.runs[0].corruptions is None
    assert "Mean corruption accuracy" not in render(none)


def test_what_cannot_be_measured():
    with pytest.raises(UsageError, match="severities of corruptions are among 1 to 5, each once, got 0, 3"):
        measure(Dark(), X, Y, severities=(0, 3))
    with pytest.raises(UsageError, match="each once, got 3, 3"):
        sw.evaluate(Dark(), (X, Y), within=sw.Linf(0.1), corruptions=[3, 3])
    with pytest.raises(UsageError, match="at least one severity"):
        measure(Dark(), X, Y, severities=())
    with pytest.raises(InputError, match=r"need images \[B, C, H, W\], got shape \[40, 192\]"):
        sw.evaluate(Dark(), (X.flatten(1), Y), within=sw.Linf(0.1), suite="corruptions")
