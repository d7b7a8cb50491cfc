"""Runs against each other: from folders to the JSON, the page and the command line."""

import dataclasses

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.cli.main import run as command_line
from stalwart.core.errors import FileError
from stalwart.core.random import generator
from stalwart.evaluation import evaluate
from stalwart.evaluation.statistics import over_seeds, paired
from stalwart.recipes.judging import save_report
from stalwart.report import Report, RunReport, side_by_side
from stalwart.report.differences import Judged, compare
from stalwart.report.html import render

X = torch.rand(60, 1, 4, 4, generator=generator(0))
Y = torch.arange(60) % 3


def model(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


@pytest.fixture(scope="module")
def judged():
    """Return a function that evaluates a small model once and gives its record and table."""
    held = {}

    def call(seed, x=X, y=Y, eps=0.02):
        key = (seed, id(x), id(y), eps)
        if key not in held:
            # The tensors are kept too, so that no other gets their id.
            held[key] = x, y, evaluate(model(seed), x, y, sw.Linf(eps), "quick", dataset="squares")
        return held[key][2]

    return call


@pytest.fixture
def folder(judged, tmp_path):
    """Return a function that writes an evaluated run."""

    def call(name, seed=0, recipe=None, **more):
        evaluation, samples = judged(seed, **more)
        run = RunReport(name=name, evaluation=evaluation, recipe=recipe)
        save_report(Report(runs=[run]), samples, tmp_path / name)
        return tmp_path / name

    return call


def said(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        command_line(["--system-malloc", *map(str, words)])
    out, err = capsys.readouterr()
    return left.value.code or 0, out, err


def test_two_runs_on_the_same_inputs(folder, judged, tmp_path, capsys):
    one, other = folder("one", 0), folder("other", 1)
    code, out, err = said(capsys, "report", one, other, "--out", tmp_path / "both")
    assert (code, err) == (0, "")
    report = Report.load(tmp_path / "both")
    (found,) = report.differences
    tables = [judged(seed)[1].columns for seed in (0, 1)]
    for column in ("clean", "worst"):
        twin = paired(*(torch.tensor(table[column]).bool() for table in tables))
        assert getattr(found, column) == twin
    rates = [run.evaluation.worst.value for run in report.runs]
    assert found.worst.difference == pytest.approx(rates[0] - rates[1])
    assert (found.first, found.second, found.reason) == ("one", "other", "")
    assert found.worst_adjusted == found.worst.p
    assert f"one minus other: {100 * found.worst.difference:+.1f} points robust" in out
    page = (tmp_path / "both" / "index.html").read_text()
    assert "Differences</h3>" in page
    assert f"{100 * found.worst.low:+.1f} to {100 * found.worst.high:+.1f}" in page
    assert "Over seeds" not in page


def test_p_is_adjusted_for_all_pairs(folder):
    report = side_by_side([folder(str(seed), seed) for seed in range(3)], "Three")
    assert [(one.first, one.second) for one in report.differences] == [("0", "1"), ("0", "2"), ("1", "2")]
    for one in report.differences:
        assert one.worst.p <= one.worst_adjusted <= min(1.0, 3 * one.worst.p)
        assert one.clean.p <= one.clean_adjusted
    ps = sorted((one.worst.p, one.worst_adjusted) for one in report.differences)
    assert ps[0][1] == pytest.approx(min(1.0, 3 * ps[0][0]))


def test_many_pairs_are_folded_away(folder):
    page = render(side_by_side([folder(str(seed), seed % 2) for seed in range(5)], "Five"))
    assert "All 10 pairs" in page


REFUSED = {
    "other inputs": ({"x": X.flip(0).contiguous()}, "they were evaluated on different inputs"),
    "other labels": ({"y": Y.flip(0).contiguous()}, "they were evaluated on different inputs"),
    "fewer inputs": ({"x": X[:30], "y": Y[:30]}, "they were evaluated on 60 and on 30 inputs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_runs_on_other_inputs_are_not_compared(case, folder, tmp_path, capsys):
    more, reason = REFUSED[case]
    code, out, err = said(capsys, "report", folder("a"), folder("b", 1, **more), "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    (found,) = Report.load(tmp_path / "out").differences
    assert (found.worst, found.clean, found.worst_adjusted, found.reason) == (None, None, None, reason)
    assert f"a and b are not compared: {reason}." in out
    assert f"not compared: {reason}" in (tmp_path / "out" / "index.html").read_text()


def test_runs_without_a_table_or_under_other_attacks(folder):
    a, b, far = folder("a"), folder("b", 1), folder("far", 1, eps=0.05)
    (b / "samples.csv").unlink()
    report = side_by_side([a, b, far], "Three")
    (found,) = report.differences
    assert found.reason == "'b' has no per-sample table beside its report"
    report.save(a.parent / "many")
    again = side_by_side([a.parent / "many", a], "Nested")
    reasons = {(one.first, one.second): one.reason for one in again.differences}
    assert "'a' has no per-sample table" in reasons["a", "a (2)"]
    assert ("a", "far") not in reasons


def test_older_reports_are_compared_by_their_labels(judged):
    evaluation, samples = judged(0)
    old = evaluation.model_copy(update={"inputs": ""})
    (found,), _ = compare([Judged("old", old, None, samples), Judged("new", evaluation, None, samples)])
    assert found.worst.difference == 0
    assert found.worst.p == 1.0


def test_tables_that_are_not_their_reports(folder, capsys, tmp_path):
    a, b = folder("a"), folder("b", 1)
    good = (b / "samples.csv").read_text()
    (b / "samples.csv").write_text((a / "samples.csv").read_text())
    code, _, err = said(capsys, "report", a, b, "--out", tmp_path / "out")
    assert code == 1
    assert "the per-sample table of 'b' is not the one of its report" in err
    assert not (tmp_path / "out").exists()
    for text, message in (
        (good[:-9], "is damaged"),
        ("", "is damaged"),
        (good.replace("worst", "wurst"), "no column 'worst'"),
    ):
        (b / "samples.csv").write_text(text)
        with pytest.raises(FileError, match=message):
            side_by_side([a, b], "t")


def recipe(seed, **more):
    return {"name": "squares-at", "seed": seed, "objective": {"name": "pgd-at"}, "evaluation": {"curve": [seed]}} | more


def test_runs_that_differ_in_their_seed_alone_are_gathered(folder, judged, tmp_path, capsys):
    runs = [folder(f"s{seed}", seed, recipe(seed)) for seed in (2, 0, 1)]
    runs.append(folder("again", 3, recipe(1)))
    runs.append(folder("other", 3, recipe(5, objective={"name": "natural"})))
    code, out, _ = said(capsys, "report", *runs, "--out", tmp_path / "all")
    assert code == 0
    report = Report.load(tmp_path / "all")
    (group,) = report.seeds
    assert (group.recipe, group.runs, group.seeds) == ("squares-at", ["s0", "s1", "s2"], [0, 1, 2])
    tables = [judged(seed)[1].columns for seed in range(3)]
    for column in ("clean", "worst"):
        assert getattr(group, column) == over_seeds(torch.tensor([table[column] for table in tables]).bool())
    assert f"squares-at, 3 seeds: robust {group.worst.mean:.1%}" in out
    page = (tmp_path / "all" / "index.html").read_text()
    assert "Over seeds</h3>" in page
    assert f"{100 * group.worst.low:.1f}–{100 * group.worst.high:.1f}" in page
    assert "but where seeds are gathered below" in page


def test_seeds_on_other_inputs_are_not_gathered(folder):
    runs = [folder("s0", 0, recipe(0)), folder("s1", 1, recipe(1), x=X.flip(0).contiguous())]
    report = side_by_side(runs, "Two")
    (group,) = report.seeds
    assert group.worst is None
    assert group.reason == "they were evaluated on different inputs"
    assert "not gathered: they were evaluated on different inputs" in render(report)


def test_one_input_alone():
    evaluation, samples = evaluate(model(0), X[:1], Y[:1], sw.Linf(0.02), "quick")
    first = Judged("s0", evaluation, recipe(0), samples)
    (pair,), (group,) = compare([first, dataclasses.replace(first, name="s1", recipe=recipe(1))])
    assert pair.worst.difference == 0
    assert group.reason == "one input says nothing of the spread"
