"""The worst case, the curve and the table agree with each other and with what a reader would compute."""

import csv
import io

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.core.random import generator
from stalwart.core.registry import lookup
from stalwart.evaluation import evaluate, steps_of
from stalwart.sets.table import SETS

EPS, CURVE = 0.12, (0.03, 0.06, 0.2)


@pytest.fixture(scope="module")
def result(plain, images):
    done = []
    x, y = images
    found, table = evaluate(
        plain, x, y, sw.Linf(EPS), "standard", curve=CURVE, advance=lambda n, note="": done.append(n)
    )
    return found, {name: torch.tensor(column) for name, column in table.columns.items()}, table, done


def test_the_worst_case_is_worse_than_every_attack_on_every_sample(result):
    found, columns, _, _ = result
    names = [row.name for row in found.attacks if row.eps == EPS]
    assert len(names) == 7
    assert 0 < columns["worst"].sum() < len(columns["worst"])
    for name in ["clean", *names]:
        assert (columns["worst"] <= columns[name]).all(), name
    # What a smaller set breaks is broken in the larger one too.
    smaller = [name for name in columns if "@" in name and not name.endswith("@0.2")]
    assert len(smaller) == 4
    assert all((columns["worst"] <= columns[name]).all() for name in smaller)
    together = torch.stack([columns[name] for name in ["clean", *names, *smaller]]).amin(0)
    assert torch.equal(columns["worst"], together), "for a deterministic model the worst case is exactly that"


def test_the_curve_falls(result):
    found, _, _, _ = result
    assert [point.eps for point in found.curve] == [0.0, 0.03, 0.06, EPS, 0.2]
    rates = [point.robust.value for point in found.curve]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == found.clean.value
    assert rates[3] == found.worst.value
    assert rates[-1] < rates[0]


def test_the_table_says_what_the_report_says(result, images):
    found, columns, table, _ = result
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert len(rows) == found.samples == 80
    assert [int(row["label"]) for row in rows] == images[1].tolist()
    assert [int(row["index"]) for row in rows] == list(range(80))
    for attack in found.attacks:
        name = attack.name if attack.eps == EPS else f"{attack.name}@{attack.eps:g}"
        assert sum(int(row[name]) for row in rows) == attack.robust.correct
        assert attack.robust.total == 80
    assert sum(int(row["clean"]) for row in rows) == found.clean.correct
    assert sum(int(row["worst"]) for row in rows) == found.worst.correct
    assert set(columns) == {"index", "label", "clean", "worst"} | {
        a.name if a.eps == EPS else f"{a.name}@{a.eps:g}" for a in found.attacks
    }


def test_progress_counts_to_its_total(result, plain):
    _, _, _, done = result
    assert done == list(range(1, steps_of("standard", plain, CURVE, sw.Linf(EPS)) + 1))


def test_costs_are_those_of_the_attacks(result):
    found, _, _, _ = result
    rows = {row.name: row for row in found.attacks if row.eps == EPS}
    assert rows["noise"].backwards == 0
    assert rows["fgsm"].backwards == 1
    assert 1 <= rows["pgd-ce"].backwards <= 20
    assert rows["pgd-ce-long"].backwards <= 100
    assert rows["pgd-ce"].backwards < rows["pgd-ce-long"].backwards
    assert all(row.rule == "deterministic" for row in found.attacks)


def test_random_signs_are_weaker_than_pgd(result, noisy, images):
    found, _, _, _ = result
    rates = {row.name: row.robust.value for row in found.attacks if row.eps == EPS}
    assert rates["noise"] > rates["pgd-ce"] + 0.1
    stochastic, _ = evaluate(noisy, *images, sw.Linf(EPS), "quick")
    rates = {row.name: row.robust.value for row in stochastic.attacks}
    assert rates["noise"] > rates["pgd-ce"] + 0.1


def test_pictures_show_inputs_that_were_right(result, images):
    found, columns, _, _ = result
    assert len(found.pictures) == 8
    first = found.pictures[0]
    index = int(((columns["clean"] == 1) & (columns["worst"] == 0)).nonzero()[0])
    assert first.clean_prediction == first.label == int(images[1][index])
    assert first.adversarial_prediction != first.label
    clean, adversarial = (torch.tensor(first.unpack(which)).float() for which in ("clean", "adversarial"))
    assert torch.equal(clean, (images[0][index] * 255).round())
    assert 1 < (clean - adversarial).abs().max() <= EPS * 255 + 1


def test_radius_zero_is_the_clean_accuracy(plain, images):
    found, _ = evaluate(plain, *images, sw.Linf(0.0), "quick")
    assert found.worst == found.clean
    assert [point.eps for point in found.curve] == [0.0]
    assert all(row.robust == found.clean for row in found.attacks)


@pytest.mark.parametrize("rule", ["mean-softmax", "mean-network"])
def test_other_rules_are_judged_by_their_own_decisions(rule, noisy, images):
    x, y = images[0][:40], images[1][:40]
    found, table = evaluate(noisy, x, y, sw.Linf(EPS), "quick", rule=rule)
    assert found.rule == rule
    rows = {row.rule: row for row in found.stochastic.rules}
    assert set(rows) == {"single", "mean-softmax", "mean-network"}
    assert rows[rule].clean == found.clean
    assert rows[rule].robust == found.worst
    if rule == "mean-network":
        with sw.stochastic.noise(noisy, "off"):
            assert found.clean.correct == int((noisy(x).argmax(1) == y).sum())
        worst = torch.tensor(table.columns["worst"])
        assert all((worst <= torch.tensor(table.columns[row.name])).all() for row in found.attacks)


def test_the_public_call_gives_the_same(plain, images):
    x, y = images
    report = sw.evaluate(plain, (x, y), within=sw.Linf(EPS), suite="quick")
    direct, _ = evaluate(plain, x, y, sw.Linf(EPS), "quick")
    assert report.runs[0].evaluation.worst == direct.worst
    assert report.runs[0].evaluation.clean == direct.clean


class Island(torch.nn.Module):
    """Wrong only in a thin shell around 0.5, which a large random start rarely meets and no gradient points to."""

    def forward(self, x):
        distance = (x[:, 0] - 0.5).abs()
        margin = torch.where((distance > 0.02) & (distance < 0.03), -1.0, 1.0) + 0 * distance
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def test_what_a_small_radius_found_counts_at_a_large_one():
    x, y = torch.full((60, 1), 0.5), torch.zeros(60, dtype=torch.long)
    found, table = evaluate(Island(), x, y, sw.Linf(0.5), "quick", curve=(0.03,))
    start, small, large = (point.robust.value for point in found.curve)
    assert start == 1
    assert small < 0.8
    assert large <= small
    assert min(row.robust.value for row in found.attacks if row.eps == 0.5) > small, "the larger radius must be harder"
    worst = torch.tensor(table.columns["worst"])
    assert (worst <= torch.tensor(table.columns["pgd-ce@0.03"])).all()


@pytest.mark.parametrize(("norm", "eps"), [("events", 3.0), ("l0", 2.0), ("l1", 0.5)])
def test_every_ball_can_be_judged_in(norm, eps):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    x = torch.rand(12, 1, 6, 6, generator=generator(0)).round()
    within = lookup("threat set", SETS, norm)(eps)
    found, _ = evaluate(model, x, model(x).argmax(1), within, "quick", curve=[1.0])
    assert found.worst.correct <= found.clean.correct == 12
    assert found.threat == within.describe()
    # A linear network's worst case is known: the support of the margin's slope.
    weight, y = model[1].weight.detach(), model(x).argmax(1)
    other = torch.stack([torch.arange(3)[torch.arange(3) != label] for label in y])
    held = torch.ones(12, dtype=torch.bool)
    for column in other.T:
        slope = (weight[column] - weight[y]).reshape(x.shape)
        shift = (model[1].bias[column] - model[1].bias[y]).detach()
        held &= within.support(x, slope) + shift < 0
    assert found.worst.correct == int(held.sum())
