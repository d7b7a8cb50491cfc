"""The suite that looks first: it finds what is wrong with six nets, nothing with two, and breaks what naive attacks leave."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from nets import (
    CLASSES,
    EPS,
    AlwaysDrops,
    OutsideTorch,
    Quantised,
    ResetsItsMode,
    Scaled,
    batch_statistics,
    mlp,
    noise_alone,
    sharp_spikes,
    train,
    zero_to_three,
)
from torch import nn

import stalwart as sw
from stalwart.core.errors import InputError
from stalwart.data import load
from stalwart.evaluation import evaluate, steps_of
from stalwart.evaluation.adaptive import ADAPTIVE, doubled, efforts, plan
from stalwart.evaluation.findings import Findings
from stalwart.evaluation.judge import Judge
from stalwart.evaluation.leaks import training_leaks
from stalwart.evaluation.model_checks import (
    MODEL_CHECKS,
    not_settled,
    search_beats_gradient,
    sharp_surrogate,
    single_draw,
)
from stalwart.evaluation.probe import draws_needed, probe
from stalwart.evaluation.results import Probe, Trait
from stalwart.evaluation.suites import Entry

X, Y = zero_to_three(load("digits").test, 100)


@pytest.fixture(scope="module")
def natural():
    return train(mlp())


def short(options, steps, queries):
    """Return options with fewer steps and queries."""
    most = {"steps": steps, "queries": queries, "restarts": 1}
    return {
        key: short(value, steps, queries)
        if key == "options"
        else min(value, most.get(key, value))
        if key in most
        else value
        for key, value in options.items()
    }


@pytest.fixture(autouse=True)
def quickly(monkeypatch, request):
    """Make the attacks of the suite short; very short where only resuming matters."""
    steps, queries = (3, 10) if "tmp_path" in request.fixturenames else (20, 100)

    def planned(seen, randomised):
        return tuple(replace(entry, options=short(entry.options, steps, queries)) for entry in plan(seen, randomised))

    monkeypatch.setattr("stalwart.evaluation.adaptive.plan", planned)


def judged(model, suite="adaptive", eps=EPS, count=100):
    counted = []
    x, y = X[:count], Y[:count]
    found, _ = evaluate(model, x, y, sw.Linf(eps), suite, advance=lambda done, note="": counted.append(done))
    total = steps_of(suite, model, (), sw.Linf(eps), data=(x, y))
    assert counted == list(range(1, total + 1)), "the progress bar must end where it said"
    return {flag.code for flag in found.flags if flag.fired}, found


def robust(found):
    return {row.name: row.robust.value for row in found.attacks}


def response(found, code):
    (trait,) = [trait for trait in found.probe.traits if trait.code == code]
    assert trait.found
    assert trait.evidence
    return trait


def test_nothing_is_wrong_with_an_undefended_net(natural):
    codes, found = judged(natural)
    assert codes == set()
    assert not any(trait.found for trait in found.probe.traits)
    assert found.suite == "adaptive"
    assert 0.1 < found.worst.value < 0.9
    assert next(flag for flag in found.flags if flag.code == "not-settled").evidence


def test_nothing_is_wrong_with_adversarial_training():
    codes, found = judged(train(mlp(), 80, attacked=0.2), eps=0.2)
    assert codes == set()
    assert not any(trait.found for trait in found.probe.traits)
    assert 0.5 < found.worst.value < 0.95


def test_a_defence_by_noise_alone():
    codes, found = judged(noise_alone(), eps=0.15)
    assert {"single-draw", "loss-dependence"} <= codes
    assert response(found, "randomised").numbers["draws"] >= 10
    left = robust(found)
    assert left["pgd-ce-1draw"] > found.worst.value + 0.2
    assert {"noise-off-margin", "settle-steps", "settle-draws"} <= left.keys()


def test_spikes_with_a_sharp_surrogate():
    net = sharp_spikes()
    codes, found = judged(net, count=50)
    assert "sharp-surrogate" in codes
    assert response(found, "spiking").numbers["zero"] > 0.05
    left = robust(found)
    assert left["surrogates"] < left["pgd-margin"] - 0.1
    assert "sharp-surrogate" in judged(net, "quick", count=50)[0]


@pytest.mark.parametrize("step", [Quantised, OutsideTorch])
def test_a_quantised_input(natural, step):
    codes, found = judged(nn.Sequential(step(), natural))
    code = "flat-steps" if step is Quantised else "no-gradient"
    assert {code, "zero-gradients"} <= codes
    assert response(found, code)
    left = robust(found)
    assert left["straight-margin"] < 0.8
    assert left["noise"] > 0.95
    if step is Quantised:
        assert left["pgd-margin"] > 0.95, "the naive attack must be fooled for this to mean anything"
        assert {code, "zero-gradients"} <= judged(nn.Sequential(step(), natural), "quick")[0]
    else:
        assert "pgd-margin" not in left, "no attack that needs a gradient"


def test_scaled_logits(natural):
    codes, found = judged(Scaled(natural))
    assert {"saturated-logits", "zero-gradients", "loss-dependence"} <= codes
    assert "flat-steps" not in codes
    bare = judged(natural)[1]
    left = robust(found)
    assert left["pgd-ce"] > 0.9
    assert left["pgd-scaled-ce"] == pytest.approx(robust(bare)["pgd-margin"], abs=0.05)
    assert found.worst.value == pytest.approx(bare.worst.value, abs=0.02)
    assert "float64-ce" not in left, "no double precision brings back exp(-10000)"
    found = judged(Scaled(natural, 20.0))[1]
    trait = response(found, "saturated-logits")
    assert trait.numbers["float64"] < trait.numbers["share"] / 2
    left = robust(found)
    assert left["float64-ce"] < left["pgd-ce"] - 0.1


def test_batch_statistics():
    net = batch_statistics()
    codes, found = judged(net)
    assert "batch" in codes
    assert response(found, "batch").numbers["change"] > 0.01
    assert "batch" in judged(net, "quick")[0]


@pytest.mark.parametrize("leak", [ResetsItsMode, AlwaysDrops])
def test_dropout_that_stays_on(natural, leak):
    net = leak(natural).eval()
    judge = Judge(net, Y, True, 0, switchable=False)
    look = probe(judge, X, sw.Linf(EPS), 0)
    assert look.trait("train-mode").numbers["changed"] > 0.9
    flags = [check(replace(findings(), judge=judge, probe=look)) for check in MODEL_CHECKS]
    assert {flag.code for flag in flags if flag and flag.fired} == {"train-mode"}
    assert [name for name, module in net.named_modules() if module.training] == []
    leaks = training_leaks(net, X[:8], 0)
    assert leaks.places == (["dropout"] if leak is ResetsItsMode else ["functional.dropout with training=True"])


def test_a_net_in_training_mode_that_obeys_is_no_leak(natural):
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, CLASSES))
    assert training_leaks(net.train(), X[:8], 0).places == []
    assert all(module.training for module in net.modules())


def test_a_net_that_cannot_answer_one_input_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, track_running_stats=False), nn.Linear(64, CLASSES))
    with pytest.raises(InputError, match="not on one alone"):
        evaluate(net, X, Y, sw.Linf(EPS), "quick")


# Parts, by hand.


def test_the_draws_that_a_gradient_needs():
    source = torch.Generator().manual_seed(0)
    signal, width = torch.ones(40, 400, dtype=torch.float64) / 20, 400
    # |E g|² = 1 and total variance n: two means of k draws have the cosine 1 / (1 + n / k).
    for variance, wanted in ((3.0, 27), (0.01, 10), (100.0, 50)):
        noise = torch.randn(40, 40, width, generator=source, dtype=torch.float64) * (variance / width) ** 0.5
        assert draws_needed(signal + noise) == pytest.approx(wanted, rel=0.1)
    k, n = 27, 3.0
    means = [
        (torch.ones(400) / 20 + torch.randn(k, 400, generator=source).mean(0) * (n / 400) ** 0.5) for _ in range(2)
    ]
    assert float(torch.cosine_similarity(*means, dim=0)) == pytest.approx(0.9, abs=0.05)


def seen(*codes, **numbers):
    traits = [Trait(code=c, title=c, found=True, evidence="e", response="r", numbers=numbers) for c in codes]
    return Probe(traits=traits, draws=30)


def test_what_is_planned_follows_from_what_was_seen():
    ordinary = [entry.name for entry in plan(Probe(), False)]
    assert not {"surrogates", "straight-margin", "pgd-scaled-ce", "float64-ce"} & set(ordinary)
    assert ordinary[-1] == "square"
    assert "surrogates" in [entry.name for entry in plan(seen("spiking"), False)]
    assert "straight-margin" in [entry.name for entry in plan(seen("flat-steps"), False)]
    assert "straight-margin" not in [entry.name for entry in plan(seen("no-gradient", straight=0.0), False)]
    assert [entry.name for entry in plan(seen("no-gradient", straight=0.0), False)] == [
        "noise",
        "origin-margin",
        "square",
    ]
    wide = plan(seen("saturated-logits", share=0.9, float64=0.1), True)
    assert {"pgd-scaled-ce", "float64-ce"} <= {entry.name for entry in wide}
    assert {e.options["eot"] for e in wide if e.name in ("pgd-ce", "pgd-margin", "pgd-scaled-ce", "float64-ce")} == {30}
    assert not any(entry.survivors for entry in wide), "a lucky draw must not decide who is attacked"
    assert [e.name for e in ADAPTIVE.entries] == ordinary


def findings(randomised=False, **verdicts):
    return Findings(Judge(nn.Identity(), Y, randomised, 0), "single", X, Y, sw.Linf(EPS), 0, CLASSES, **verdicts)


def share(value):
    return torch.arange(100) < round(100 * value)


def test_the_strongest_attack_is_run_again_with_twice_the_effort():
    entries = (
        Entry("noise", "noise", {}, "noise"),
        Entry("a", "pgd", {"steps": 10, "eot": 4}),
        Entry("b", "straight-through", {"options": {"steps": 30, "loss": "ce"}, "eot": 8}),
        Entry("off", "transfer", {"options": {"steps": 50}}, "transfer"),
        Entry("square", "square", {"queries": 100}, survivors=True),
    )
    left = {"a": share(0.5), "b": share(0.3), "off": share(0.2), "noise": share(0.0)}
    (again,) = doubled(entries, findings(correct=left, left={"square": share(0.1)}))
    assert (again.name, again.attack, again.survivors) == ("settle-steps", "transfer", True)
    assert again.options == {"options": {"steps": 100}}
    steps, draws = doubled(entries, findings(True, correct=left))
    assert steps.options == {"options": {"steps": 100}}
    assert (draws.name, draws.options) == ("settle-draws", {"options": {"steps": 30, "loss": "ce"}, "eot": 16})
    assert not draws.survivors
    assert efforts(entries[:1], True) == ()


def test_whether_it_settled():
    def run(*shares):
        rounds = {f"r{i}": (share(a), share(b)) for i, (a, b) in enumerate(pairwise(shares))}
        return not_settled(findings(doubled=rounds))

    assert not run(0.5, 0.5).fired
    assert not run(0.5, 0.49).fired, "one sample of 100 is no evidence"
    assert run(0.5, 0.4).fired
    assert run(0.5, 0.47, 0.44).fired, "small falls add up"
    assert not_settled(findings()) is None


def test_the_single_draw_and_the_search_by_hand():
    def sweep(few, many):
        return single_draw(findings(True, sweep={1: share(few), 20: share(0.0), 50: share(many)}))

    assert sweep(0.6, 0.4).fired
    assert not sweep(0.5, 0.44).fired
    assert single_draw(findings()) is None

    def search(gradient, left, name="left"):
        return search_beats_gradient(
            findings(
                correct={"pgd": share(gradient), "noise": share(0.0)} | ({"square": left} if name == "correct" else {}),
                kinds={"pgd": "white-box", "noise": "noise", "square": "white-box"},
                left={"square": left} if name == "left" else {},
            )
        )

    for name in ("left", "correct"):
        assert search(0.6, share(0.5), name).fired
        assert not search(0.6, share(0.58), name).fired
    assert search_beats_gradient(findings()) is None
    assert sharp_surrogate(findings()) is None


class Killed(Exception):
    """What a test kills an evaluation with."""


@pytest.mark.parametrize("after", [2, 9])
def test_kill_and_resume_gives_the_same_table(natural, tmp_path, after):
    def advance(done, note=""):
        if done == after:
            raise Killed

    net = nn.Sequential(Quantised(16), natural)
    x, y = X[:20], Y[:20]
    _, whole = evaluate(net, x, y, sw.Linf(EPS), "adaptive", curve=[0.05])
    with pytest.raises(Killed):
        evaluate(net, x, y, sw.Linf(EPS), "adaptive", curve=[0.05], advance=advance, kept=tmp_path / "kept")
    _, found = evaluate(net, x, y, sw.Linf(EPS), "adaptive", curve=[0.05], kept=tmp_path / "kept")
    assert found.csv() == whole.csv()
    assert not (tmp_path / "kept").exists()
