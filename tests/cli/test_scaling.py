"""Sweeps and shared evaluations from the command line: what they print and leave, and what they refuse."""

import json
import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def threads():
    """Give the threads back that a command has left to its processes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


JUDGED = ("evaluation.suite=quick", "evaluation.samples=8", "evaluation.chips=0", "model={name: mlp, widths: [8]}")


def test_a_sweep_of_two_by_two_runs(stalwart, tiny, tmp_path):
    words = (
        "sweep",
        "digits-natural",
        *tiny,
        *JUDGED,
        "--over",
        "seed=0,1",
        "--over",
        "training.optimiser.lr=0.01,0.1",
    )
    words = (*words, "--out", tmp_path / "sweep", "--device", "cpu")
    said = stalwart(*words)
    assert (said.code, said.err) == (0, "")
    names = ["seed-0_lr-0.01", "seed-0_lr-0.1", "seed-1_lr-0.01", "seed-1_lr-0.1"]
    lines = said.out.splitlines()
    assert sorted(line.split()[1] for line in lines[:4]) == names
    assert lines[3].startswith("4/4  ")
    assert all("clean" in line and "worst" in line for line in lines[:4])
    report = json.loads((tmp_path / "sweep" / "report.json").read_text())
    assert [run["name"] for run in report["runs"]] == [f"digits-natural_{name}" for name in names]
    assert (tmp_path / "sweep" / "index.html").exists()
    again = stalwart(*words)
    assert (again.code, again.out.splitlines()[0]) == (0, "4 of 4 runs are finished already")


def test_runs_that_fail_are_told_at_the_end(refused, tiny, tmp_path):
    path = tmp_path / "sweep" / "epochs-2" / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.mkdir()
    words = ("sweep", "digits-natural", *tiny[1:], *JUDGED, "--over", "training.epochs=2", "--out", tmp_path / "sweep")
    message = refused(1, *words, "--device", "cpu")
    assert message.startswith("1 of the runs failed: epochs-2: ")
    assert not (tmp_path / "sweep" / "report.json").exists()


def test_evaluate_in_two_processes(stalwart, copied, quick, tmp_path):
    words = ("evaluate", copied, *quick, "--chips", "0", "--batch-size", "4")
    assert stalwart(*words, "--out", tmp_path / "one").code == 0
    said = stalwart(*words, "--out", tmp_path / "two", "--workers", "2")
    assert (said.code, said.err) == (0, "")
    assert (tmp_path / "one" / "samples.csv").read_bytes() == (tmp_path / "two" / "samples.csv").read_bytes()
    assert (
        json.loads((tmp_path / "two" / "report.json").read_text())["runs"][0]["recipe"]["evaluation"]["batch_size"] == 4
    )
    assert not (tmp_path / "two" / "attacks").exists()


def test_bad_words(refused, copied, quick, tmp_path, monkeypatch):
    assert "--workers" in refused(2, "evaluate", copied, *quick, "--workers", "0")
    assert "--workers" in refused(2, "sweep", "digits-natural", "--over", "seed=0", "--workers", "0")
    assert "needs something to vary" in refused(2, "sweep", "digits-natural", "--out", tmp_path / "none")
    assert "does not name values" in refused(2, "sweep", "digits-natural", "--over", "seed", "--out", tmp_path / "none")
    assert "unknown key 'sed'" in refused(2, "sweep", "digits-natural", "--over", "sed=1", "--out", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    for words in (
        ("evaluate", copied, *quick),
        ("sweep", "digits-natural", "--over", "seed=0", "--out", tmp_path / "no"),
    ):
        assert "pip install 'stalwart[cluster]'" in refused(2, *words, "--address", "auto")
    assert not (tmp_path / "none").exists()
