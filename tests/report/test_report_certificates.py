"""Certificates in the report: the record, the order check, and what the page shows."""

import json
import re

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.evaluation import Samples
from stalwart.evaluation import evaluate as attack_all
from stalwart.report import Report, RunReport, certify, with_verdicts
from stalwart.report.certificates import order_flag
from stalwart.report.html import render
from stalwart.sets import Linf

METHODS = ("ibp", "crown-ibp", "lbp", "crown-lbp", "alpha-crown", "branch-and-bound")
COLUMNS = ("IBP", "CROWN-IBP", "LBP", "CROWN-LBP", "α-CROWN", "complete")


@pytest.fixture(scope="module")
def evaluated():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.rand(30, 1, 2, 3)
    y = net(x).argmax(1)
    y[:2] = (y[:2] + 1) % 3
    evaluation, table = attack_all(net, x, y, Linf(0.08), "quick", curve=(0.03, 0.15))
    return net, x, y, evaluation, table


@pytest.fixture
def table(evaluated):
    return Samples({name: list(values) for name, values in evaluated[-1].columns.items() if "certified" not in name})


@pytest.fixture
def certified(evaluated, table):
    net, x, y, evaluation, _ = evaluated
    return certify(net, x[:20], y[:20], Linf(0.08), evaluation, table, METHODS, timeout=5)


def run_of(evaluated, certificates, name="certified"):
    return RunReport(name=name, evaluation=evaluated[3], certificates=certificates)


def test_certified_is_at_most_attacked_is_at_most_clean(certified, table):
    assert [row.method for row in certified.methods] == list(METHODS)
    assert [point.eps for point in certified.curve] == [0.03, 0.08, 0.15]
    for point in certified.curve:
        assert point.certified.correct <= point.attacked.correct <= certified.clean.correct
    assert all(row.certified.correct <= certified.best.correct for row in certified.methods)
    assert 0 < certified.best.correct <= certified.attacked.correct < 20
    assert certified.best == certified.curve[1].certified
    assert not certified.order.fired
    (layer,) = certified.neurons
    assert layer.neurons == 12
    assert sum(layer.shares.values()) == pytest.approx(1)
    assert table.columns["certified-ibp"][20:] == [""] * 10
    assert Samples.parse(table.csv()).columns.keys() == table.columns.keys()


def test_round_trip_and_a_report_from_before(evaluated, certified, tmp_path):
    report = Report(title="x", runs=[run_of(evaluated, certified)])
    report.save(tmp_path)
    assert Report.load(tmp_path) == report
    value = json.loads((tmp_path / "report.json").read_text())
    del value["runs"][0]["certificates"]
    (tmp_path / "report.json").write_text(json.dumps(value))
    assert Report.load(tmp_path).runs[0].certificates is None


@pytest.mark.parametrize("column", ["worst", "clean", "pgd-ce@0.03", "pgd-ce@0.15"])
def test_the_order_check_fires_on_a_planted_contradiction(evaluated, certified, table, column):
    evaluation = evaluated[3]
    assert not order_flag(evaluation, table).fired
    proven = table.columns["certified@0.15" if column.endswith("0.15") else "certified"]
    at = proven.index(1)
    table.columns[column][at] = 0
    flag = order_flag(evaluation, table)
    assert flag.fired
    counts = "broke 0 inside the proven set, and 1" if column == "clean" else "broke 1 inside the proven set, and 0"
    assert counts in flag.evidence
    page = render(Report(title="x", runs=[run_of(evaluated, certified.model_copy(update={"order": flag}))]))
    assert "A proof is contradicted" in page
    assert "do not trust" in page
    assert "and that number is in doubt" in page


def test_a_proof_of_one_weak_method_cannot_hide(evaluated, certified, table):
    """A contradicted proof counts although another method proves the same sample not at all."""
    at = table.columns["worst"][:20].index(0)
    statuses = ["verified" if i == at else "unknown" for i in range(20)]
    found = with_verdicts(certified, evaluated[3], table, statuses, 1.0, 60)
    assert found.order.fired
    assert found.best.correct == certified.best.correct + 1
    assert found.methods[-1].note == "19 undecided, 0 of them after 60 s"


def test_verdicts_replace_the_row_and_reach_smaller_radii(evaluated, certified, table):
    survivors = table.columns["worst"]
    statuses = ["verified" if right else "falsified" for right in survivors]
    found = with_verdicts(certified, evaluated[3], table, [*statuses, "verified"], 3.0, 60)
    assert [row.method for row in found.methods] == list(METHODS)
    assert found.methods[-1].certified.correct == sum(survivors)
    assert (found.samples, found.best.correct) == (30, sum(survivors))
    assert found.curve[0].certified.correct >= found.curve[1].certified.correct >= found.curve[2].certified.correct
    assert found.neurons == certified.neurons
    assert not found.order.fired
    alone = with_verdicts(
        None,
        evaluated[3],
        Samples({n: list(c) for n, c in table.columns.items() if "certified" not in n}),
        statuses,
        3.0,
        60,
    )
    assert [row.method for row in alone.methods] == ["branch-and-bound"]
    assert [point.eps for point in alone.curve] == [0.08]
    assert "Certificates" in render(Report(title="x", runs=[run_of(evaluated, alone)]))


def test_the_page_shows_columns_curves_and_neurons(evaluated, certified):
    plain = RunReport(name="plain", evaluation=evaluated[3])
    page = render(Report(title="x", runs=[run_of(evaluated, certified), plain]))
    head = re.search(r"<thead>.*?</thead>", page, re.DOTALL)[0]
    assert re.findall(r'class="proof">(.*?)<span', head) == list(COLUMNS)
    assert head.index("Worst case") < head.index("Certified") < head.index("pgd-ce")
    assert page.count('aria-label="Certified accuracy against the radius eps"') == 1
    assert page.count('aria-label="Attacked and certified accuracy against the radius eps"') == 1
    assert page.count('aria-label="Shares of dead, unstable and alive neurons in each layer"') == 1
    assert "Certified accuracies are lower bounds" in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    without = render(Report(title="x", runs=[plain]))
    assert "ertified" not in without.replace("certificates", "")


def test_a_refused_method_is_named_with_its_reason(evaluated, certified):
    note = "refused: linear forms take 9.6 GiB for one input; the limit is 2 GiB"
    rows = [
        row.model_copy(update={"certified": None, "note": note}) if row.method == "lbp" else row
        for row in certified.methods
    ]
    page = render(Report(title="x", runs=[run_of(evaluated, certified.model_copy(update={"methods": rows}))]))
    assert page.count(note) == 1
    assert re.search(r'href="#run-1-proofs">refused</a>', page)


def test_in_one_call(evaluated):
    net, x, y, _, _ = evaluated
    report = sw.evaluate(net, (x, y), Linf(0.08), suite="quick", certify=["ibp", "crown"], strategy="tight")
    found = report.runs[0].certificates
    assert [row.method for row in found.methods] == ["ibp", "crown"]
    assert found.samples == 30
