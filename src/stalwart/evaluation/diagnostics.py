"""Masking diagnostics: signs that a robust accuracy says more about the attack than about the model.

Sources: Athalye, Carlini, Wagner, ICML 2018 (arXiv 1802.00420), section 3.1; Carlini et al. 2019 (arXiv 1902.06705);
Tramèr et al., NeurIPS 2020 (arXiv 2002.08347). Every check that applies is reported, fired or not. Thresholds are
constants below, the same for every model.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace

from stalwart.attacks.losses import LossName
from stalwart.evaluation.findings import Findings, gap
from stalwart.evaluation.model_checks import MODEL_CHECKS
from stalwart.evaluation.probe import ZERO_SHARE, batch_difference, batch_limit, gradients
from stalwart.evaluation.results import Flag
from stalwart.stochastic import noise

_POINTS = 0.02
_STEPS_GAP = 0.05
_LOSS_GAP = 0.08
_CHANCE_SLACK = 0.05
_PART = 200
_COMPANY = 16


def diagnose(findings: Findings) -> list[Flag]:
    """Return the verdict of every check that applies to these findings."""
    flags = [check(findings) for check in CHECKS]
    return [flag for flag in flags if flag is not None]


def zero_gradients(f: Findings) -> Flag | None:
    """Count inputs whose cross-entropy gradient is exactly zero, with the noise off where it can be switched off."""
    x, y = f.x[:_PART], f.y[:_PART]
    slopes = gradients(f.model, x, y, f.seed)
    share = 1.0 if slopes is None else float(slopes.still.float().mean())
    return Flag(
        code="zero-gradients",
        title="Gradients vanish",
        fired=share > ZERO_SHARE,
        explanation="The cross entropy has no gradient at these inputs, so attacks on it stand still. Mostly the softmax is "
        "saturated, and losses on the logits (margin, DLR) tell how robust the model is; where it is made of flat steps, "
        "none does, see the checks for these.",
        evidence=f"{share:.1%} of {len(x)} inputs have a zero or no finite gradient; the limit is {ZERO_SHARE:.0%}.",
    )


def loss_dependence(f: Findings) -> Flag | None:
    """Compare the reference attack on the cross entropy with the worst case."""
    if "pgd-ce" not in f.correct:
        return None
    difference, sure = gap(f.correct["pgd-ce"], f.worst)
    return Flag(
        code="loss-dependence",
        title="Cross-entropy attacks overstate robustness",
        fired=sure and difference >= _LOSS_GAP,
        explanation="Other attacks break many inputs that PGD on the cross entropy leaves alone. An evaluation with that "
        "attack only would call this model far more robust than it is.",
        evidence=f"PGD-CE leaves {f.correct['pgd-ce'].float().mean():.1%}, the worst case {f.worst.float().mean():.1%}: "
        f"a gap of {100 * difference:.1f} points; the limit is {100 * _LOSS_GAP:.0f}.",
    )


def one_step_beats_many(f: Findings) -> Flag | None:
    """Check whether a single step breaks more than the iterative attack."""
    if not {"fgsm", "pgd-ce"} <= f.correct.keys():
        return None
    return _beats(
        f,
        "fgsm",
        "one-step",
        "One step beats many",
        "FGSM breaks more inputs than PGD, which can take the same step and go on. The gradients further along mislead: a "
        "sign of a loss surface that is shaped against gradient descent, or of catastrophic overfitting.",
    )


def random_beats_gradient(f: Findings) -> Flag | None:
    """Check whether random noise breaks more than the gradient attack."""
    if not {"noise", "pgd-ce"} <= f.correct.keys():
        return None
    return _beats(
        f,
        "noise",
        "random-noise",
        "Random noise beats the gradient",
        "Noise without any knowledge of the model breaks more inputs than PGD. The gradients carry no information.",
    )


def transfer_beats_white_box(f: Findings) -> Flag | None:
    """Compare the best transfer attack with the best white-box attack."""
    if not f.judge.randomised:
        return None
    means = {name: float(correct.float().mean()) for name, correct in f.correct.items()}
    transfers = {name: value for name, value in means.items() if f.kinds[name] == "transfer"}
    whites = {name: value for name, value in means.items() if f.kinds[name] == "white-box"}
    if not transfers or not whites:
        return None
    best, own = min(transfers, key=transfers.__getitem__), min(whites, key=whites.__getitem__)
    difference, sure = gap(f.correct[own], f.correct[best])
    return Flag(
        code="transfer",
        title="Transfer beats white-box attacks",
        fired=sure and difference > _POINTS,
        explanation="Attacks crafted without the model's own noise break more inputs than attacks that see everything. The "
        "noise hides the gradient rather than moving the decision.",
        evidence=f"{best} leaves {means[best]:.1%}, the best white-box attack ({own}) {means[own]:.1%}.",
    )


def more_steps_help(f: Findings) -> Flag | None:
    """Check whether the reference attack had converged."""
    if "pgd-ce-long" not in f.correct:
        return None
    difference, sure = gap(f.correct["pgd-ce"], f.correct["pgd-ce-long"])
    return Flag(
        code="steps",
        title="More steps change the result",
        fired=sure and difference > _STEPS_GAP,
        explanation="PGD has not converged after 20 steps, so results with few steps are too kind to the model.",
        evidence=f"20 steps leave {f.correct['pgd-ce'].float().mean():.1%}, 100 steps "
        f"{f.correct['pgd-ce-long'].float().mean():.1%}; the limit is {100 * _STEPS_GAP:.0f} points.",
    )


def not_monotone(f: Findings) -> Flag | None:
    """Check that the reference attack gets stronger with the radius."""
    radii = sorted(f.by_radius)
    if len(radii) < 2:
        return None
    rises = [(small, large, *gap(f.by_radius[large], f.by_radius[small])) for small, large in itertools.pairwise(radii)]
    small, large, rise, _ = max(rises, key=lambda entry: entry[2])
    return Flag(
        code="not-monotone",
        title="A larger radius helps the model",
        fired=any(sure and difference > _POINTS for _, _, difference, sure in rises),
        explanation="PGD breaks fewer inputs at a larger radius, although every smaller perturbation is still allowed: the "
        "attack fails, not the model.",
        evidence=f"largest change from eps {small:g} to {large:g}: {100 * rise:+.1f} points of PGD-CE accuracy.",
    )


def unbounded_attack_fails(f: Findings) -> Flag | None:
    """Check that a huge radius brings accuracy down to chance."""
    if f.within.name not in ("linf", "l2") or not f.differentiable:
        return None
    half = (f.within.high - f.within.low) / 2
    eps = half if f.within.name == "linf" else half * f.x[0].numel() ** 0.5
    count = min(_PART, len(f.x))
    accuracy = float(f.survives(f.reference(f.within.with_eps(eps), count), count).float().mean())
    chance = 1 / f.classes
    return Flag(
        code="unbounded",
        title="Even a huge perturbation fails",
        fired=accuracy > chance + _CHANCE_SLACK,
        explanation="At a radius where every image can be turned grey no model can do better than guessing. PGD on the cross "
        "entropy leaves more than that, so it does not find perturbations that exist.",
        evidence=f"at eps {eps:.3g} PGD-CE leaves {accuracy:.1%} of {count} inputs; chance is {chance:.1%}.",
    )


def frozen_noise_resists(f: Findings) -> Flag | None:
    """Check that PGD works once the noise is frozen and the model is an ordinary deterministic one."""
    if not f.judge.randomised or not f.judge.switchable or not f.differentiable:
        return None
    count = min(_PART, len(f.x))
    with noise(f.model, "fixed", seed=f.seed):
        part = replace(f.judge, y=f.y[:count], randomised=False)
        losses: tuple[LossName, ...] = ("ce", "margin")
        ce, margin = (part.margins(f.reference(f.within, count, 1, loss))["single"] > 0 for loss in losses)
    # Both on the same frozen network: against the noisy one, errors that the noise makes by itself would count as well.
    difference, sure = gap(ce, ce & margin)
    return Flag(
        code="frozen-noise",
        title="Attacks fail even with the noise frozen",
        fired=sure and difference > _LOSS_GAP,
        explanation="With the same noise at every call the model is an ordinary network, yet PGD on the cross entropy still "
        "fails on inputs that a margin attack breaks. Randomness is not what protects it; poor gradients are.",
        evidence=f"frozen noise: PGD-CE leaves {ce.float().mean():.1%} of {count}, with PGD on the margin "
        f"{(ce & margin).float().mean():.1%}.",
    )


def more_draws_help(f: Findings) -> Flag | None:
    """Check that the sweep over averaged draws is flat at its end."""
    if len(f.sweep) < 2:
        return None
    few, many = sorted(f.sweep)[-2:]
    difference, sure = gap(f.sweep[few], f.sweep[many])
    return Flag(
        code="draws",
        title="More draws change the result",
        fired=sure and difference > _POINTS / 2,
        explanation="Averaging more noise draws still makes the attack stronger, so the numbers here are too kind.",
        evidence=f"{few} draws leave {f.sweep[few].float().mean():.1%}, {many} draws {f.sweep[many].float().mean():.1%}.",
    )


def noise_stays_on(f: Findings) -> Flag | None:
    """Say so where the noise cannot be switched off, since mandatory checks are then missing."""
    if not f.judge.randomised:
        return None
    return Flag(
        code="noise-stays-on",
        title="The noise cannot be switched off",
        fired=not f.judge.switchable,
        explanation="The model draws its noise outside stalwart's noise layers. Its mean network, attacks transferred from it "
        "and the frozen-noise check are missing from this report, although no randomised defence should be believed "
        "without them. Build the noise from stalwart.stochastic.NoiseLayer.",
        evidence="two calls with all noise layers off "
        + ("agree." if f.judge.switchable else "differ, or the model has no noise layers."),
    )


def batch_dependence(f: Findings) -> Flag | None:
    """Check that an input's logits do not depend on its neighbours in the batch."""
    count = min(_COMPANY, len(f.x))
    difference = batch_difference(f.model, f.x[:count], f.seed)
    if difference is None:
        return None
    return Flag(
        code="batch",
        title="Predictions depend on the batch",
        fired=difference > batch_limit(f.x),
        explanation="The same input gets other logits in other company, as from batch normalisation that takes the batch's own "
        "statistics. Attack results then depend on the batch size, and an attacker can choose the company. Fix the "
        "statistics, or judge inputs one by one.",
        evidence=f"largest relative change of a logit between batch 1 and batch {count}: {difference:.1e}, where "
        f"rounding stays below {batch_limit(f.x):.0e}.",
    )


def _beats(f: Findings, name: str, code: str, title: str, explanation: str) -> Flag:
    # Where gradients mislead, the order is reversed by far; at two standard errors one noisy model in twenty would be accused.
    difference, sure = gap(f.correct["pgd-ce"], f.correct[name], errors=3.0)
    return Flag(
        code=code,
        title=title,
        fired=sure and difference > _POINTS,
        explanation=explanation,
        evidence=f"{name} leaves {f.correct[name].float().mean():.1%}, PGD-CE {f.correct['pgd-ce'].float().mean():.1%}.",
    )


CHECKS: tuple[Callable[[Findings], Flag | None], ...] = (
    zero_gradients,
    loss_dependence,
    one_step_beats_many,
    random_beats_gradient,
    transfer_beats_white_box,
    more_steps_help,
    not_monotone,
    unbounded_attack_fails,
    frozen_noise_resists,
    more_draws_help,
    noise_stays_on,
    batch_dependence,
    *MODEL_CHECKS,
)
"""All checks; each returns None where it does not apply."""
