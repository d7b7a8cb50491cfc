"""Every masking check fires on a model built to be masked in that way, and stays silent on a plain one."""

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.core.errors import UsageError
from stalwart.evaluation import evaluate
from stalwart.evaluation.diagnostics import (
    frozen_noise_resists,
    loss_dependence,
    more_draws_help,
    more_steps_help,
    not_monotone,
    one_step_beats_many,
    random_beats_gradient,
    transfer_beats_white_box,
    unbounded_attack_fails,
)
from stalwart.evaluation.findings import Findings
from stalwart.evaluation.judge import Judge

EPS = 0.1


def fired(model, images, suite="standard", curve=(), eps=EPS):
    x, y = images
    found, _ = evaluate(model, x, y, sw.Linf(eps), suite, curve=curve)
    assert len({flag.code for flag in found.flags}) == len(found.flags)
    assert all(flag.title and flag.explanation and flag.evidence for flag in found.flags)
    return {flag.code for flag in found.flags if flag.fired}, {flag.code for flag in found.flags}, found


@pytest.fixture(scope="module")
def ordinary(plain, images):
    return fired(plain, images, curve=(0.03, 0.06))


def test_a_plain_model_raises_no_flag(ordinary):
    codes, checked, found = ordinary
    assert codes == set()
    every = {
        "zero-gradients",
        "loss-dependence",
        "one-step",
        "random-noise",
        "steps",
        "not-monotone",
        "unbounded",
        "batch",
        "no-gradient",
        "saturated-logits",
        "flat-steps",
        "misleading-gradient",
        "train-mode",
    }
    assert checked == every
    assert 0.05 < found.worst.value < 0.95, "a model that is all broken or all safe proves nothing here"


def test_a_plain_noisy_model_raises_no_flag(noisy, images):
    codes, checked, found = fired(noisy, images, "quick")
    assert codes == set()
    assert {"transfer", "frozen-noise", "draws"} <= checked
    assert found.randomised


def test_saturated_logits(plain, images, made, ordinary):
    codes, _, found = fired(made["scaled"](plain, 1e4), images)
    assert {"zero-gradients", "loss-dependence", "unbounded", "saturated-logits"} <= codes
    assert "flat-steps" not in codes
    unscaled = ordinary[2]
    by_name = {row.name: row.robust.value for row in found.attacks}
    assert by_name["pgd-ce"] > unscaled.worst.value + 0.2, (
        "cross-entropy attacks must be fooled for this to mean anything"
    )
    assert abs(found.worst.value - unscaled.worst.value) < 0.03, "scale-free losses must not be"


def test_shattered_gradients(plain, images, made):
    codes, _, found = fired(made["shattered"](plain), images, "quick", eps=0.25)
    assert {"unbounded", "random-noise", "misleading-gradient"} <= codes
    _, _, bare = fired(plain, images, "quick", eps=0.25)
    assert found.worst.value > bare.worst.value + 0.5, "the attacks must be fooled for this to mean anything"


def test_misleading_cross_entropy(plain, images, made):
    codes, _, found = fired(made["misleading"](plain), images)
    assert "loss-dependence" in codes
    assert "zero-gradients" not in codes
    assert found.worst.value < 0.9


def test_a_batch_dependent_model(plain, images, made):
    codes, _, _ = fired(made["company"](plain), images, "quick")
    assert "batch" in codes


def test_a_model_that_ignores_gradients(plain, images, made):
    class Numb(nn.Module):
        """Rounds away its input, so that no gradient exists."""

        def forward(self, x):
            return plain((x * 8).round() / 8)

    codes, _, found = fired(Numb(), images, "quick")
    assert {"zero-gradients", "unbounded", "flat-steps"} <= codes
    assert "saturated-logits" not in codes
    assert found.worst.value > 0.3


# The checks that compare verdicts, on verdicts made by hand.


def findings(images, plain, randomised=False, **verdicts):
    x, y = images
    judge = Judge(plain, y, randomised, 0)
    return Findings(judge, "single", x, y, sw.Linf(EPS), 0, 4, **verdicts)


def share(value, n=80):
    return torch.arange(n) < round(value * n)


@pytest.mark.parametrize(
    ("check", "name", "other", "limit"),
    [(one_step_beats_many, "fgsm", "pgd-ce", 0.05), (random_beats_gradient, "noise", "pgd-ce", 0.05)],
)
def test_weaker_attacks_that_win(check, name, other, limit, images, plain):
    def run(weak, strong):
        kinds = {name: "noise", other: "white-box"}
        return check(findings(images, plain, correct={name: share(weak), other: share(strong)}, kinds=kinds))

    assert run(0.3, 0.5).fired
    assert not run(0.5, 0.5).fired
    assert not run(0.6, 0.5).fired
    assert not run(0.4875, 0.5).fired, "one sample of 80 is no evidence"
    assert check(findings(images, plain, correct={other: share(0.5)})) is None


def test_transfer_that_wins(images, plain):
    def run(transfer, own, other=0.9, randomised=True):
        correct = {"off": share(transfer), "a": share(own), "b": share(other), "noise": share(0.0)}
        kinds = {"off": "transfer", "a": "white-box", "b": "white-box", "noise": "noise"}
        return transfer_beats_white_box(findings(images, plain, randomised, correct=correct, kinds=kinds))

    assert run(0.3, 0.5).fired
    assert not run(0.5, 0.5).fired
    assert not run(0.3, 0.9, other=0.3).fired, "the best white-box attack counts"
    assert run(0.3, 0.5, randomised=False) is None, "a deterministic model has no noise to hide a gradient"
    white = findings(images, plain, True, correct={"a": share(0.5)}, kinds={"a": "white-box"})
    assert transfer_beats_white_box(white) is None


def test_more_steps_and_draws_that_help(images, plain):
    def steps(short, long):
        return more_steps_help(findings(images, plain, correct={"pgd-ce": share(short), "pgd-ce-long": share(long)}))

    assert steps(0.6, 0.4).fired
    assert not steps(0.6, 0.575).fired
    assert not steps(0.4, 0.6).fired

    def draws(**rates):
        return more_draws_help(findings(images, plain, sweep={int(k[1:]): share(v) for k, v in rates.items()}))

    assert draws(d1=0.9, d20=0.6, d50=0.4).fired
    assert not draws(d1=0.9, d20=0.4, d50=0.4).fired, "only the end of the sweep counts"
    assert draws(d1=0.9) is None


def test_a_curve_that_rises(images, plain):
    def run(*rates):
        return not_monotone(findings(images, plain, by_radius={0.1 * (i + 1): share(r) for i, r in enumerate(rates)}))

    assert not run(0.9, 0.5, 0.1).fired
    assert run(0.9, 0.2, 0.5).fired
    assert not run(0.9, 0.2, 0.2125).fired
    assert run(0.9) is None


def test_a_loss_that_overstates(images, plain):
    def run(ce, worst):
        return loss_dependence(findings(images, plain, correct={"pgd-ce": share(ce)}, worst=share(worst)))

    assert run(0.6, 0.5).fired
    assert not run(0.55, 0.5).fired


def test_huge_radii(images, plain, made):
    x, y = images
    assert not unbounded_attack_fails(findings(images, plain)).fired
    masked = Judge(made["scaled"](plain, 1e4), y, False, 0)
    assert unbounded_attack_fails(Findings(masked, "single", x, y, sw.Linf(EPS), 0, 4)).fired
    assert unbounded_attack_fails(Findings(masked, "single", x, y, sw.L2(0.5), 0, 4)).fired
    assert unbounded_attack_fails(Findings(masked, "single", x, y, sw.L0(3), 0, 4)) is None


def test_frozen_noise(images, noisy, plain):
    x, y = images

    def run(model):
        return frozen_noise_resists(Findings(Judge(model, y, True, 0), "single", x, y, sw.Linf(EPS), 0, 4))

    with torch.no_grad():
        noisy.head.linear.weight.mul_(1e4)
        noisy.head.linear.bias.mul_(1e4)
        noisy.head.raw_diagonal.fill_(-5.0)
    assert run(noisy).fired
    assert frozen_noise_resists(findings(images, plain)) is None
    with torch.no_grad():
        noisy.head.linear.weight.mul_(1e-4)
        noisy.head.linear.bias.mul_(1e-4)
    assert not run(noisy).fired
    with torch.no_grad():
        noisy.head.raw_diagonal.fill_(3.0)
    assert not run(noisy).fired, "errors that the noise makes by itself are no failure of the attack"


def test_noise_that_cannot_be_switched_off_is_said_and_nothing_is_pretended(plain, images):
    class Foreign(nn.Module):
        """Draws its noise with torch.randn_like, out of reach of the noise layers' switch."""

        def forward(self, x):
            logits = plain(x)
            return logits + torch.randn_like(logits)

    codes, checked, found = fired(Foreign(), images, "quick")
    assert "noise-stays-on" in codes
    assert not {"transfer", "frozen-noise"} & checked
    assert not [row.name for row in found.attacks if row.kind == "transfer"]
    assert [row.rule for row in found.stochastic.rules] == ["single", "mean-softmax"]
    x, y = images
    with pytest.raises(UsageError, match="mean-network"):
        evaluate(Foreign(), x, y, sw.Linf(EPS), "quick", rule="mean-network")


def test_gradients_that_are_not_finite_count_as_vanished(plain, images):
    class Undefined(nn.Module):
        """Adds zero times a square root at zero, whose derivative is not a number."""

        def forward(self, x):
            return plain(x) + 0 * (x * 0).flatten(1).norm(dim=1, keepdim=True).sqrt()

    codes, _, _ = fired(Undefined(), images, "quick")
    assert "zero-gradients" in codes


def test_labels_of_any_integer_type_and_radii_as_text(plain, images):
    x, y = images
    found, _ = evaluate(plain, x, y.int(), sw.Linf("8/255"), "quick", curve=["4/255"])
    assert [point.eps for point in found.curve] == [0.0, pytest.approx(4 / 255), pytest.approx(8 / 255)]
    assert all(row.eot == 1 for row in found.attacks)
