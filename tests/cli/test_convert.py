"""``stalwart convert``: a run as spikes that can be evaluated, ONNX and NIR files, foreign modules, clear errors."""

import json

import pytest
import torch
import yaml

from stalwart.interchange import OnnxSession
from stalwart.recipes import runs
from stalwart.report import Report

THEIRS = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(F.avg_pool2d(torch.relu(self.conv(x)), 2).flatten(1))

class Gelu(Net):
    def forward(self, x):
        return self.linear(F.gelu(F.avg_pool2d(F.relu(self.conv(x)), 2)).flatten(1))
"""


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    (tmp_path / "theirs_to_convert.py").write_text(THEIRS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_run_becomes_a_spiking_run_and_files(stalwart, refused, trained, tmp_path):
    snn = tmp_path / "spikes"
    said = stalwart("convert", trained, "--steps", 6, "--out", snn, "start=0.25")
    assert said.code == 0, said.err
    assert "accuracy before" in said.out
    recipe = yaml.safe_load((snn / "recipe.yaml").read_text())
    assert recipe["conversion"]["method"] == {"name": "rate", "start": 0.25}
    assert recipe["conversion"]["steps"] == 6
    record = json.loads((snn / "conversion.json").read_text())
    assert len(record["replaced"]) == 4
    said = stalwart("evaluate", snn, "--suite", "quick", "--samples", 6, "--chips", 1, "--device", "cpu")
    assert said.code == 0, said.err
    (run,) = Report.load(snn).runs
    assert run.conversion is not None
    assert run.hardware is not None
    assert [one.layer for one in run.conversion.replaced] == [one["layer"] for one in record["replaced"]]
    assert "Conversion" in (snn / "index.html").read_text()

    assert stalwart("convert", snn, "--to", "onnx", "--out", tmp_path / "a.onnx").code == 0
    _, model, data = runs.load_run(snn, runs.Source(download=False))
    x, _ = data.test.take(5).batch(slice(None))
    with torch.no_grad():
        assert torch.allclose(OnnxSession(tmp_path / "a.onnx").run(x), model(x), atol=1e-5)
    assert stalwart("convert", trained, "--to", "onnx").code == 0
    assert (trained / "model.onnx").exists()
    (trained / "model.onnx").unlink()

    message = refused(2, "convert", snn)
    assert "holds a spiking network already" in message
    message = refused(2, "convert", trained, "--to", "nir")
    assert "--to snn first" in message


def test_a_nir_file(stalwart, refused, trained, tmp_path):
    pytest.importorskip("nir", reason="the extra stalwart[nir] is not installed")
    snn = tmp_path / "spikes"
    assert stalwart("convert", trained, "--out", snn).code == 0
    assert "--lossy soft-reset" in refused(1, "convert", snn, "--to", "nir")
    assert not (snn / "model.nir").exists()
    said = stalwart("convert", snn, "--to", "nir", "--lossy", "soft-reset,initial")
    assert said.code == 0, said.err
    assert "same spikes" in said.out


def test_a_foreign_module(stalwart, refused, foreign):
    said = stalwart("convert", "--model", "theirs_to_convert:Net", "--dataset", "digits", "--out", "snn")
    assert said.code == 0, said.err
    assert {path.name for path in (foreign / "snn").iterdir()} == {"conversion.json", "model.safetensors"}
    assert stalwart("convert", "--model", "theirs_to_convert:Net", "--dataset", "digits", "--to", "onnx").code == 0
    message = refused(1, "convert", "--model", "theirs_to_convert:Gelu", "--dataset", "digits", "--out", "other")
    assert "calls 'gelu'" in message
    assert not list((foreign / "other").glob("*")) if (foreign / "other").exists() else True


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--method", "robst"], 2, "Did you mean 'robust'"),
        (["rho=0.2"], 2, "'rate' has no option 'rho'"),
        (["start=[1"], 2, "not a YAML value"),
        (["--to", "pdf"], 2, "snn, nir, onnx, not 'pdf'"),
        (["--to", "onnx", "--steps", "3"], 2, "belong to --to snn"),
        (["--lossy", "initial"], 2, "--lossy belongs to --to nir"),
        (["--encoder", "morse"], 2, "unknown encoder 'morse'"),
        (["--max-pool", "mean"], 2, "max_pool"),
        (["--weights", "w.safetensors"], 2, "belong to --model"),
    ],
)
def test_bad_wishes(refused, trained, tmp_path, words, code, message):
    out = tmp_path / "spikes"
    assert message in refused(code, "convert", trained, "--out", out, *words)
    assert not (out / "recipe.yaml").exists()


def test_a_recipe_that_converts(stalwart, refused, trained, tmp_path):
    assert "name a run folder" in refused(2, "convert")
    recipe = yaml.safe_load((trained / "recipe.yaml").read_text())
    recipe |= {
        "name": "fine",
        "conversion": {"source": "../source", "method": {"name": "robust", "balancing_steps": 10}, "steps": 2},
        "objective": {"name": "robust-finetune", "eps": 0.1},
    }
    file = tmp_path / "fine.yaml"
    file.write_text(yaml.safe_dump(recipe))
    out = tmp_path / "fine"
    assert "no trained network to convert" in refused(1, "train", file, "--out", out)
    assert not (out / "recipe.yaml").exists()
    (tmp_path / "source").symlink_to(trained)
    said = stalwart("train", file, "--out", out, "--device", "cpu")
    assert said.code == 0, said.err
    before = (out / "model.safetensors").read_bytes()
    assert stalwart("train", file, "--out", out, "--resume", "--device", "cpu").code == 0
    assert (out / "model.safetensors").read_bytes() == before
    other = recipe | {"name": "other", "model": {"name": "mlp"}}
    file.write_text(yaml.safe_dump(other))
    assert "the section 'model' differs" in refused(2, "train", file, "--out", tmp_path / "other")
    file.write_text(yaml.safe_dump(recipe | {"name": "none", "conversion": None, "training": {"epochs": 0}}))
    assert "epochs must be at least 1" in refused(2, "train", file, "--out", tmp_path / "none")
    (out / "conversion.json").write_text("{")
    assert "conversion.json is damaged" in refused(1, "evaluate", out, "--suite", "quick", "--samples", 2)
