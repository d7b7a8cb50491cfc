"""The commands end to end: what they print, and what they leave in the run's folder."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from stalwart.cli import demo
from stalwart.recipes import load_recipe, shipped
from stalwart.report import Report

FOREIGN = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def flat():
    return nn.Linear(5, 10)

def images():
    return nn.Identity()

def few():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def needs(width):
    return nn.Linear(width, 10)

def text():
    return "no model"

ready = small()
"""


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Put a module of somebody else's models in the current folder."""
    (tmp_path / "somebody_elses.py").write_text(FOREIGN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("somebody_elses", None)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_train_evaluate_report(stalwart, copied, quick, tmp_path):
    kept = {"recipe.yaml", "model.safetensors", "metrics.jsonl", "checkpoint/latest.safetensors"}
    assert files(copied) == kept
    said = stalwart("evaluate", copied, *quick, "--eps", "2/255", "--curve", "0.1,0.2", "--chips", 1)
    assert (said.code, said.err) == (0, "")
    assert "digits-natural  clean" in said.out
    assert files(copied) == kept | {"report.json", "index.html", "samples.csv"}
    report = json.loads((copied / "report.json").read_text())
    (run,) = report["runs"]
    assert run["evaluation"]["eps"] == 2 / 255
    assert run["recipe"]["evaluation"]["eps"] == 2 / 255, "the report holds the options that were used"
    assert [point["eps"] for point in run["evaluation"]["curve"]] == [0.0, 2 / 255, 0.1, 0.2]
    assert len(run["training"]) == 2
    assert {row["chips"] for row in run["hardware"]["rows"] if not row["refused"]} == {1}
    rows = table(copied / "samples.csv")
    assert len(rows) == 12
    assert sum(int(row["worst"]) for row in rows) == run["evaluation"]["worst"]["correct"]
    page = (copied / "index.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "digits-natural" in page

    other = stalwart("evaluate", copied, *quick, "--out", tmp_path / "other", "--norm", "l2", "--eps", 0.5, "--seed", 3)
    assert other.code == 0
    assert files(tmp_path / "other") == {"report.json", "index.html", "samples.csv"}
    both = stalwart("report", copied, tmp_path / "other", "--out", tmp_path / "both", "--title", "Side by side")
    assert (both.code, both.err) == (0, "")
    combined = Report.load(tmp_path / "both")
    assert [one.name for one in combined.runs] == ["digits-natural", "digits-natural (2)"]
    assert [one.evaluation.eps for one in combined.runs] == [2 / 255, 0.5]
    assert combined.title == "Side by side"
    assert files(tmp_path / "both") == {"report.json", "index.html"}
    assert both.out.count("worst") == 2


def test_a_run_holds_its_whole_recipe(trained):
    import yaml

    from stalwart.recipes.load import parse_recipe

    values = yaml.safe_load((trained / "recipe.yaml").read_text())
    assert values["training"]["optimiser"]["weight_decay"] == 0.0, "defaults are spelled out"
    assert parse_recipe(values, "run").training.epochs == 2
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert {"train_loss", "validation_accuracy", "lr", "seconds", "step"} <= lines[0].keys()


def test_a_finished_run_can_be_resumed_from_its_own_recipe(stalwart, copied):
    before = {name: (copied / name).read_bytes() for name in files(copied)}
    said = stalwart("train", copied / "recipe.yaml", "--out", copied, "--resume", "--device", "cpu")
    assert (said.code, said.err) == (0, "")
    assert {name: (copied / name).read_bytes() for name in files(copied)} == before


@pytest.mark.parametrize("factory", ["small", "ready"])
def test_a_foreign_model(stalwart, foreign, quick, factory):
    weights = foreign / "w.safetensors"
    torch.manual_seed(0)
    save_file({"1.weight": torch.randn(10, 64), "1.bias": torch.zeros(10)}, weights)
    model = f"somebody_elses:{factory}"
    said = stalwart("evaluate", "--model", model, "--weights", weights, "--dataset", "digits", *quick, "--eps", 0.1)
    assert said.code == 0, said.err
    folder = foreign / "runs" / f"somebody_elses-{factory}"
    assert files(folder) == {"report.json", "index.html", "samples.csv"}
    (run,) = Report.load(folder).runs
    x = torch.tensor([int(row["clean"]) for row in table(folder / "samples.csv")])
    assert int(x.sum()) == run.evaluation.clean.correct
    assert run.recipe is None


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("somebody_elses:absent",), 2, "somebody_elses:absent': module 'somebody_elses' has no attribute 'absent'"),
        (("nobodys:small",), 2, "nobodys:small': No module named 'nobodys'"),
        (("somebody_elses",), 2, "somebody_elses' must read pkg.module:factory"),
        (("somebody_elses:text",), 2, "somebody_elses:text' gave a str; it must give a torch.nn.Module"),
        (("somebody_elses:needs",), 2, "somebody_elses:needs': calling it failed: needs() missing 1 required"),
        (("somebody_elses:flat",), 1, "does not run on inputs of shape [12, 1, 8, 8]"),
        (("somebody_elses:images",), 1, "for 2 inputs it gave [2, 1, 8, 8]"),
        (("somebody_elses:few",), 1, "labels must be in [0, 3), but sample"),
        (("somebody_elses:small", "--weights", "w.safetensors"), 1, "w.safetensors do not fit the model. It lacks"),
        (("somebody_elses:small", "--weights", "shape.safetensors"), 1, "1.weight has shape [10, 65] in the file"),
        (("somebody_elses:small", "--weights", "none.safetensors"), 1, "cannot read weights none.safetensors"),
        (("somebody_elses:small", "--weights", "torn.safetensors"), 1, "torn.safetensors is not a valid safetensors"),
    ],
)
def test_foreign_models_that_cannot_be_used(refused, foreign, quick, words, code, message):
    save_file({"other": torch.zeros(3)}, "w.safetensors")
    save_file({"1.weight": torch.zeros(10, 65), "1.bias": torch.zeros(10)}, "shape.safetensors")
    with open("w.safetensors", "rb") as whole, open("torn.safetensors", "wb") as torn:
        torn.write(whole.read()[:-5])
    assert message in refused(code, "evaluate", "--model", *words, "--dataset", "digits", *quick)
    assert not any("report" in name or name.endswith((".csv", ".part")) for name in files(foreign))


def test_list_shows_everything(stalwart):
    everything = stalwart("list")
    assert everything.code == 0
    expected = {
        "recipes": list(shipped()),
        "attacks": ["fgsm", "pgd", "bim", "noise", "transfer"],
        "objectives": ["natural", "pgd-at", "trades", "mart", "awp", "fgsm-rs", "wca"],
        "models": ["small-cnn", "resnet18", "lenet++"],
        "noises": ["wca", "gaussian", "pni"],
        "datasets": ["digits", "cifar10", "npz", "svhn"],
        "suites": ["quick", "standard", "stochastic"],
    }
    for kind, known in expected.items():
        said = stalwart("list", kind)
        assert said.code == 0
        names = [line.split()[0] for line in said.out.splitlines() if line.startswith("  ") and line[2] != " "]
        assert set(known) <= set(names)
        assert said.out.strip() in everything.out
    assert "steps=20" in stalwart("list", "attacks").out, "options are shown with their defaults"


def test_the_demo_tells_its_story_and_reuses_what_is_there(stalwart, tmp_path, monkeypatch, tiny):
    monkeypatch.setattr(demo, "RECIPES", ("digits-natural", "digits-wca"))
    small = [*tiny, "evaluation.suite=quick", "evaluation.samples=8"]
    monkeypatch.setattr(demo, "load_recipe", lambda name: load_recipe(name, small))
    said = stalwart("demo", "--out", tmp_path)
    assert said.code == 0, said.err
    assert [run.name for run in Report.load(tmp_path).runs] == ["digits-natural", "digits-wca"]
    before = (tmp_path / "digits-wca" / "report.json").stat().st_mtime_ns
    (tmp_path / "digits-natural" / "report.json").unlink()
    assert stalwart("demo", "--out", tmp_path).code == 0
    assert (tmp_path / "digits-wca" / "report.json").stat().st_mtime_ns == before
    assert (tmp_path / "digits-natural" / "report.json").exists()


def test_help_in_a_process_of_its_own():
    done = subprocess.run([sys.executable, "-m", "stalwart", "--help"], text=True, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(command in done.stdout for command in ("train", "evaluate", "report", "list", "demo"))


def test_an_interrupt_is_one_message(tmp_path):
    command = [sys.executable, "-m", "stalwart", "--threads", "1", "train", "digits-natural", "training.epochs=5000"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path), "--device", "cpu"],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until = time.monotonic() + 90
    while not (tmp_path / "checkpoint").exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "error: interrupted; a training run goes on with --resume.\n"
