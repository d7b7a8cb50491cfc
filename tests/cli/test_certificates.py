"""Certificates from the command line: ``evaluate`` and ``certify`` end in one report."""

import csv
import json

import pytest

from stalwart.cli.main import run
from stalwart.report import Report

SECTION = "evaluation.certify={methods: [ibp, crown-ibp], samples: 8, timeout: 2}"


@pytest.fixture(scope="module")
def certifiable(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("certifiable") / "run"
    words = ["train", "digits-ibp", *tiny, SECTION, "training.validation=null", "objective.eps=0.02"]
    with pytest.raises(SystemExit) as left:
        run(["--system-malloc", *words, "--out", str(folder), "--device", "cpu"])
    assert not left.value.code
    return folder


def only(folder):
    (found,) = Report.load(folder).runs
    return found.certificates


def test_evaluate_certifies_and_certify_adds_its_verdicts(stalwart, certifiable, quick):
    early = stalwart("certify", certifiable, "--eps", "0.02", "--samples", "4", "--methods", "ibp,branch-and-bound")
    assert early.code == 0, early.err
    assert "not in a report yet" in early.out

    said = stalwart("evaluate", certifiable, *quick, "--eps", "0.02", "--curve", "0.01")
    assert (said.code, said.err) == (0, "")
    found = only(certifiable)
    assert f"certified {found.best.value:6.1%}, n=8" in said.out
    assert [row.method for row in found.methods] == ["ibp", "crown-ibp"]
    assert [point.eps for point in found.curve] == [0.01, 0.02]
    assert all(point.certified.correct <= point.attacked.correct <= found.clean.correct for point in found.curve)
    assert not found.order.fired
    assert [layer.layer for layer in found.neurons] == ["backbone.1", "backbone.3", "backbone.6", "backbone.8"]
    page = (certifiable / "index.html").read_text()
    assert "CROWN-IBP" in page
    rows = list(csv.DictReader((certifiable / "samples.csv").read_text().splitlines()))
    assert [row["certified-ibp"] for row in rows[8:]] == [""] * 4
    assert sum(int(row["certified"] or 0) for row in rows) == found.best.correct

    other = stalwart("certify", certifiable, "--eps", "0.015", "--samples", "2", "--methods", "branch-and-bound")
    assert "not in the report, which speaks of Linf eps=0.02" in other.out
    assert only(certifiable) == found
    again = stalwart("certify", certifiable, "--eps", "0.02", "--samples", "4", "--methods", "ibp,branch-and-bound")
    assert again.code == 0, again.err
    assert f"report: {certifiable / 'index.html'}" in again.out
    new = only(certifiable)
    assert [row.method for row in new.methods] == ["ibp", "crown-ibp", "branch-and-bound"]
    assert new.methods[-1].certified.total == 4
    assert new.samples == 8
    assert new.neurons == found.neurons
    assert "complete" in (certifiable / "index.html").read_text()


def test_methods_from_the_command_line(stalwart, refused, certifiable, quick, tmp_path):
    words = ("evaluate", certifiable, *quick, "--eps", "0.02", "--curve", "0.02", "--out", tmp_path)
    assert stalwart(*words, "--certify", "none").code == 0
    assert only(tmp_path) is None
    assert stalwart(*words, "--certify", "lbp").code == 0
    assert [(row.method, row.certified.total) for row in only(tmp_path).methods] == [("lbp", 8)]
    assert "unknown bounding method 'ipb'. Did you mean 'ibp'?" in refused(2, *words, "--certify", "ipb")


def test_a_run_is_certified_by_its_recipes_methods(stalwart, certifiable):
    said = stalwart("certify", certifiable, "--eps", "0.005", "--samples", "2")
    assert said.code == 0, said.err
    head = json.loads((certifiable / "certified-linf-0.005" / "verified.jsonl").read_text().splitlines()[0])
    assert head["methods"] == ["ibp", "crown-ibp"]


def test_a_damaged_table_is_named(stalwart, refused, certifiable, quick, tmp_path):
    import shutil

    copied = shutil.copytree(certifiable, tmp_path / "copied")
    words = ("certify", copied, "--eps", "0.02", "--samples", "2", "--methods", "branch-and-bound")
    shutil.rmtree(copied / "certified-linf-0.02", ignore_errors=True)
    assert stalwart("evaluate", copied, *quick, "--eps", "0.02", "--certify", "ibp").code == 0
    (copied / "samples.csv").write_text("index,clean\n0\n")
    assert "samples.csv does not fit the report" in refused(1, *words)
