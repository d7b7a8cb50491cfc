"""Checks of the model itself: why its gradient would fail an attack, and whether the attacks have settled."""

from collections.abc import Callable

import torch

from stalwart.evaluation.findings import Findings, gap
from stalwart.evaluation.results import Flag
from stalwart.spiking import neurons

_LOSS_GAP = 0.08
_SETTLED = 0.01
_SEARCHED = 0.02
_PART = 100
_DRAWS = 10
_OTHERS = ("exponential", "atan", "straight-through")

_MEANINGS = {
    "no-gradient": "Autograd sees no way from the input to the output, so white-box attacks cannot run and what is left is a "
    "search without gradients. Make every step a submodule, so that attacks can go straight through it, or attack a "
    "differentiable copy and transfer.",
    "saturated-logits": "The logits lie so far apart that the softmax rounds to 0 and 1, and the cross entropy has no "
    "gradient. That protects from nothing but attacks on the cross entropy: attack the margin, DLR or the cross entropy of "
    "scaled logits (scaled-ce), or divide the logits by a constant.",
    "flat-steps": "The output changes with the input, but in steps whose gradient is zero everywhere, as of rounding, JPEG or "
    "thresholds. Gradient attacks stand still while the model is as weak as it was. Let gradients go straight through "
    "the steps (attack straight-through), attack the model without them and transfer, or search without gradients (square).",
    "misleading-gradient": "The gradient that autograd returns is not that of the function, so attacks that follow it go "
    "anywhere. Let gradients go straight through the step that is to blame (attack straight-through), or search without "
    "gradients (square).",
    "train-mode": "Something in the model goes on as in training after eval(): dropout that stays on, a mode that is set back, "
    "or statistics that are updated. Its answers then change from call to call or from batch to batch, and are not those "
    "of the deployed model. Build it from modules that obey eval(), and evaluate again.",
}


def _from_probe(code: str) -> Callable[[Findings], Flag | None]:
    def check(f: Findings) -> Flag | None:
        trait = None if f.probe is None else f.probe.trait(code)
        if trait is None:
            return None
        return Flag(
            code=code, title=trait.title, fired=trait.found, explanation=_MEANINGS[code], evidence=trait.evidence
        )

    return check


def sharp_surrogate(f: Findings) -> Flag | None:
    """Hold the network's own surrogate against three wide ones, in PGD-20 on the margin."""
    if not neurons(f.model) or not f.differentiable:
        return None
    count, draws = min(_PART, len(f.x)), _DRAWS if f.judge.randomised else 1
    own = f.survives(f.reference(f.within, count, draws, "margin"), count)
    found = {name: f.survives(f.reference(f.within, count, draws, "margin", surrogate=name), count) for name in _OTHERS}
    best = min(found, key=lambda name: float(found[name].float().mean()))
    difference, sure = gap(own, found[best])
    return Flag(
        code="sharp-surrogate",
        title="Another surrogate breaks more",
        fired=sure and difference >= _LOSS_GAP,
        explanation="The derivative that stands for a spike is too narrow: it is near zero for most neurons, products of it "
        "over layers and steps vanish, and attacks with it stand still. Judge the network by many surrogates (attack "
        "surrogate-ensemble, adaptive-surrogate; suites spiking, snn-adaptive and adaptive).",
        evidence=f"PGD-20 on the margin leaves {own.float().mean():.1%} of {count} with the network's own surrogate, "
        f"{found[best].float().mean():.1%} with {best}; the limit is {100 * _LOSS_GAP:.0f} points.",
    )


def single_draw(f: Findings) -> Flag | None:
    """Hold the attack that follows one noise draw a step against the one that averages the most."""
    if len(f.sweep) < 2:
        return None
    few, many = min(f.sweep), max(f.sweep)
    difference, sure = gap(f.sweep[few], f.sweep[many])
    return Flag(
        code="single-draw",
        title="Attacks with one draw overstate robustness",
        fired=sure and difference >= _LOSS_GAP,
        explanation="Noise hides the gradient from an attack that looks at one draw a step, and averaging draws brings it "
        "back. A result without that (EoT) speaks of the noise in the gradient, not of robustness; report many draws.",
        evidence=f"PGD-CE with {few} draw leaves {f.sweep[few].float().mean():.1%}, with {many} draws "
        f"{f.sweep[many].float().mean():.1%}; the limit is {100 * _LOSS_GAP:.0f} points.",
    )


def search_beats_gradient(f: Findings) -> Flag | None:
    """Check that a search without gradients finds next to nothing that gradient attacks left."""
    name = "square"
    gradient = [correct for one, correct in f.correct.items() if f.kinds[one] != "noise" and one != name]
    if not gradient or name not in {**f.left, **f.correct}:
        return None
    if name in f.left:
        before = torch.stack([*gradient, *(left for one, left in f.left.items() if one != name)]).all(0)
        after = before & f.left[name]
    else:
        before, after = min(gradient, key=lambda correct: float(correct.float().mean())), f.correct[name]
    difference, sure = gap(before, after)
    return Flag(
        code="black-box",
        title="A search without gradients breaks more",
        fired=sure and difference > _SEARCHED,
        explanation="Square knows nothing but the output, and still breaks inputs that all gradient attacks left. The "
        "gradients mislead: find out which step they fail at, and attack straight through it or a differentiable copy.",
        evidence=f"gradient attacks leave {before.float().mean():.1%}, with Square {after.float().mean():.1%}; the limit is "
        f"{100 * _SEARCHED:.0f} points.",
    )


def not_settled(f: Findings) -> Flag | None:
    """Check that the strongest attacks, run again with steps and draws doubled, break no more than a point."""
    if not f.doubled:
        return None
    rounds = list(f.doubled.items())
    fall, sure = gap(rounds[0][1][0], rounds[-1][1][1])
    said = ", ".join(f"{after.float().mean():.1%} after {name}" for name, (_, after) in rounds)
    return Flag(
        code="not-settled",
        title="The attacks have not settled",
        fired=sure and fall > _SETTLED,
        explanation="Twice the effort still lowers robust accuracy, so the number here is too kind. Go on with more steps, "
        "more draws or more restarts until it stays.",
        evidence=f"{rounds[0][1][0].float().mean():.1%} before, {said}: {100 * fall:.1f} points; the limit is "
        f"{100 * _SETTLED:.0f}, and two standard errors of paired outcomes.",
    )


MODEL_CHECKS: tuple[Callable[[Findings], Flag | None], ...] = (
    *(_from_probe(code) for code in _MEANINGS),
    sharp_surrogate,
    single_draw,
    search_beats_gradient,
    not_settled,
)
"""All checks of this file; each returns None where it does not apply."""
