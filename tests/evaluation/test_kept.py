"""An evaluation that is killed goes on where it was, to the same table; attacks on what is left; the origin's transfer."""

from functools import partial

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.attacks.autoattack import MEMBERS, member
from stalwart.core.errors import UsageError
from stalwart.core.random import derive, generator
from stalwart.evaluation import evaluate, steps_of
from stalwart.evaluation.blocks import Subject, one_by_one
from stalwart.evaluation.suites import SNN_ADAPTIVE, Entry

X = torch.rand(24, 1, 6, 6, generator=generator(0))
SUITE = "snn-adaptive"


@pytest.fixture
def nets():
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 4)).eval()
    return ann, sw.convert(ann, X, steps=4)


class Killed(Exception):
    """What a test kills an evaluation with."""


def killer(after):
    def advance(done, note=""):
        if done == after:
            raise Killed

    return advance


@pytest.fixture
def quick(monkeypatch):
    """Make the costly attacks of the suite short."""
    short = {"queries": 20, "steps": 3}

    def shorten(options):
        found = {key: short.get(key, value) for key, value in options.items()}
        if "options" in found:
            found["options"] = shorten(found["options"])
        return found

    entries = tuple(
        type(entry)(entry.name, entry.attack, shorten(entry.options), entry.kind, entry.curve, entry.survivors)
        for entry in SNN_ADAPTIVE.entries
    )
    suite = type(SNN_ADAPTIVE)(SUITE, entries, entries)
    monkeypatch.setattr("stalwart.evaluation.suites.SNN_ADAPTIVE", suite)
    return suite


@pytest.mark.parametrize("after", [1, 7, 13])
def test_kill_and_resume_gives_the_same_table(quick, nets, tmp_path, after):
    ann, snn = nets
    y = ann(X).argmax(1)
    options = {"suite_name": SUITE, "curve": [0.02], "origin": ann}
    _, whole = evaluate(snn, X, y, sw.Linf(0.1), **options)
    with pytest.raises(Killed):
        evaluate(snn, X, y, sw.Linf(0.1), **options, advance=killer(after), kept=tmp_path / "kept")
    assert 0 < len(list((tmp_path / "kept").iterdir())) <= after, "a file an attack, but for those with no input left"
    counted = []
    _, found = evaluate(
        snn, X, y, sw.Linf(0.1), **options, kept=tmp_path / "kept", advance=lambda done, note="": counted.append(done)
    )
    assert found.csv() == whole.csv()
    assert not (tmp_path / "kept").exists()
    assert counted[-1] == steps_of(SUITE, snn, [0.02], sw.Linf(0.1), origin=True)


def test_results_of_another_model_or_damaged_ones_do_not_count(quick, nets, tmp_path):
    ann, snn = nets
    y = ann(X).argmax(1)
    with pytest.raises(Killed):
        evaluate(ann, X, y, sw.Linf(0.1), "quick", advance=killer(2), kept=tmp_path)
    _, wanted = evaluate(snn, X, y, sw.Linf(0.1), "quick")
    with pytest.raises(Killed):
        evaluate(snn, X, y, sw.Linf(0.1), "quick", advance=killer(2), kept=tmp_path)
    torn = sorted(tmp_path.iterdir())[0]
    torn.write_bytes(torn.read_bytes()[:50])
    _, found = evaluate(snn, X, y, sw.Linf(0.1), "quick", kept=tmp_path)
    assert found.csv() == wanted.csv()


def test_the_suite_of_converted_networks(quick, nets):
    ann, snn = nets
    y = ann(X).argmax(1)
    evaluation, _ = evaluate(snn, X, y, sw.Linf(0.1), SUITE, origin=ann)
    rows = {row.name: row.robust.correct for row in evaluation.attacks}
    assert "origin-margin" in rows
    left = [rows[entry.name] for entry in quick.entries if entry.survivors]
    assert left == sorted(left, reverse=True), "each counts what it and all before it left"
    assert evaluation.worst.correct == left[-1]
    assert "origin-margin" not in {row.name for row in evaluate(snn, X, y, sw.Linf(0.1), SUITE)[0].attacks}
    names = [entry.name for entry in quick.fitting(ann, False, sw.Linf(0.1), True)]
    assert "surrogates-pgd" not in names, "an ANN has no surrogates"


def test_only_what_is_left_is_attacked(nets):
    ann, _ = nets
    y, left = ann(X).argmax(1), torch.arange(24) < 10
    subject = Subject(ann, X, y, sw.Linf(0.05), 0)
    (block,) = subject.blocks(Entry("short", "pgd", {"steps": 3}), 0.05, left)
    found = subject.merge([(block, subject.attack(block))]).result
    assert torch.equal(found.x_adv[10:], X[10:])
    assert (found.cost.forwards[10:] == 0).all()
    assert (found.cost.forwards[:10] > 0).all()
    assert torch.equal(found.success[10:], torch.ones(14, dtype=torch.bool))
    seed = derive(0, "short", 0.05)
    alone = sw.attack("pgd", steps=3)(ann, X[:10], y[:10], within=sw.Linf(0.05), seed=seed)
    assert torch.equal(found.x_adv[:10], alone.x_adv)


def test_the_members_of_autoattack_are_resumed_and_count_together(nets, tmp_path, monkeypatch):
    def shortened(name, version, norm):
        registered, options = member(name, version, norm)
        return registered, options | ({"queries": 20} if registered == "square" else {"steps": 4, "restarts": 1})

    monkeypatch.setattr("stalwart.attacks.autoattack.member", shortened)
    ann, _ = nets
    y = ann(X).argmax(1)
    y[0] = (y[0] + 1) % 4
    notes = []
    report, whole = evaluate(ann, X, y, sw.Linf(0.05), "autoattack", advance=lambda done, note="": notes.append(note))
    rows = {row.name: row for row in report.attacks}
    left = [rows[name].robust.correct for name in MEMBERS["standard"]]
    assert left == sorted(left, reverse=True)
    assert 0 < left[-1] == report.worst.correct < report.clean.correct == 23
    assert notes[-1] == f"square at eps 0.05, at most {report.worst.value:.1%} robust"
    for after in (4, 6):
        with pytest.raises(Killed):
            evaluate(ann, X, y, sw.Linf(0.05), "autoattack", advance=killer(after), kept=tmp_path)
        assert evaluate(ann, X, y, sw.Linf(0.05), "autoattack", kept=tmp_path)[1].csv() == whole.csv()


@pytest.mark.parametrize("after", [1, 6, 11])
def test_kill_and_resume_within_an_attack(nets, tmp_path, after):
    ann, _ = nets
    y, options = ann(X).argmax(1), {"suite_name": "quick", "curve": [0.02], "batch_size": 7}
    _, whole = evaluate(ann, X, y, sw.Linf(0.1), **options)
    assert whole.csv() != evaluate(ann, X, y, sw.Linf(0.1), "quick", curve=[0.02])[1].csv(), (
        "blocks have seeds of their own"
    )
    attacked = []

    def work(subject, blocks, most):
        for block, found in one_by_one(subject, blocks):
            if len(attacked) == most:
                raise Killed
            attacked.append(block.name)
            yield block, found

    with pytest.raises(Killed):
        evaluate(ann, X, y, sw.Linf(0.1), **options, kept=tmp_path / "kept", work=partial(work, most=after))
    assert len(list((tmp_path / "kept").iterdir())) == after
    steps = []
    _, found = evaluate(
        ann,
        X,
        y,
        sw.Linf(0.1),
        **options,
        kept=tmp_path / "kept",
        work=partial(work, most=100),
        advance=lambda done, note="": steps.append(done),
    )
    assert found.csv() == whole.csv()
    assert len(attacked) == len(set(attacked)) == 4 * (4 + 2), "no block is attacked twice"
    assert steps == sorted(steps)
    assert steps[-1] == steps_of("quick", ann, [0.02], sw.Linf(0.1))


def test_what_one_block_size_left_is_nothing_to_another(nets, tmp_path):
    ann, _ = nets
    y = ann(X).argmax(1)
    with pytest.raises(Killed):
        evaluate(ann, X, y, sw.Linf(0.1), "quick", advance=killer(2), kept=tmp_path, batch_size=7)
    _, wanted = evaluate(ann, X, y, sw.Linf(0.1), "quick", batch_size=8)
    assert evaluate(ann, X, y, sw.Linf(0.1), "quick", kept=tmp_path, batch_size=8)[1].csv() == wanted.csv()
    with pytest.raises(UsageError, match="the batch size must be at least 1, got 0"):
        evaluate(ann, X, y, sw.Linf(0.1), "quick", batch_size=0)
