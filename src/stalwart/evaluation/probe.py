"""A look at the model before it is attacked: is it random, does it spike, and does its gradient tell how its output changes?

What is asked follows Tramèr et al., NeurIPS 2020 (arXiv 2002.08347), sections 3 and 4: an attack is chosen for a model, and why
gradients would fail is known before they do. Gradients are looked at with the noise off, where it can be switched off.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.attacks.double_precision import Doubled, runs_in_double
from stalwart.attacks.guard import undisturbed
from stalwart.attacks.losses import cross_entropy, margin
from stalwart.attacks.straight_through import straight_through
from stalwart.core.random import derive, generator
from stalwart.evaluation.judge import Judge
from stalwart.evaluation.leaks import training_leaks
from stalwart.evaluation.results import Probe, Trait
from stalwart.sets import ThreatSet
from stalwart.spiking import neurons
from stalwart.stochastic import noise

ZERO_SHARE = 0.05
"""Above this share of inputs without a gradient, gradient attacks are not to be believed."""
AGREEMENT = 0.2
"""Below this agreement of a gradient with differences, the gradient says nothing of the function."""
_PART = 100
_CHUNK = 32
_DIRECTIONS = 8
_COMPANY = 16
_DRAWS = 20
_WANTED = 0.9
_FEW, _MANY = 10, 50


class Slopes(NamedTuple):
    """Gradients at inputs [N, ...]: whether the cross entropy's is zero or not finite, [N] bool, and the margin's, [N, ...]."""

    still: Tensor
    of_margin: Tensor


@dataclass(frozen=True)
class Steps:
    """How the margin changes from inputs to random points of their threat sets.

    Attributes:
        moved: whether the logits of an input changed at all, [N] bool.
        agreement: mean cosine of what the gradient foretells of 8 moves and what they do; None where it is not defined.
    """

    moved: Tensor
    agreement: float | None


def probe(judge: Judge, x: Tensor, within: ThreatSet, seed: int) -> Probe:
    """Look at the judged model on the first 100 inputs of x [N, ...] and return what was found; it is left as it was."""
    x, y = x[:_PART], judge.y[:_PART]
    slopes = gradients(judge.model, x, y, seed)
    quiet = judge.switchable or not judge.randomised
    steps = moves(judge.model, x, y, within, slopes, seed) if quiet else None
    randomised, draws = _randomised(judge, x, y, slopes is not None, seed)
    traits = [
        randomised,
        _spiking(judge.model, slopes, steps),
        _detached(judge.model, x, slopes, seed),
        *_still(judge.model, x, y, slopes, steps, seed),
        _misleading(judge.model, slopes, steps),
        _batch(judge.model, x, seed),
        _training(judge.model, x, seed),
    ]
    return Probe(traits=[trait for trait in traits if trait is not None], draws=draws)


def gradients(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Slopes | None:
    """Return the gradients at inputs, noise off; None if the output carries none."""
    still, of_margin = [], []
    with undisturbed(model, seed), noise(model, "off"), torch.enable_grad():
        for part, labels in zip(x.split(_CHUNK), y.split(_CHUNK), strict=True):
            leaf = part.detach().clone().requires_grad_()
            logits = model(leaf)
            if not logits.requires_grad:
                return None
            loss = F.cross_entropy(logits, labels, reduction="sum")
            (ce,) = torch.autograd.grad(loss, leaf, retain_graph=True)
            (slope,) = torch.autograd.grad(margin(logits, labels).sum(), leaf)
            # A gradient that is not finite moves an attack as little as one that is zero.
            still.append(((ce == 0) | ~ce.isfinite()).flatten(1).all(1))
            of_margin.append(torch.nan_to_num(slope.detach(), nan=0.0, posinf=0.0, neginf=0.0))
    return Slopes(torch.cat(still), torch.cat(of_margin))


def moves(model: nn.Module, x: Tensor, y: Tensor, within: ThreatSet, slopes: Slopes | None, seed: int) -> Steps:
    """Compare the margin's changes towards random points of the threat set with what its gradient foretells."""
    source = generator(seed, "probe", "moves", device=x.device)
    foretold, done = [], []
    with undisturbed(model, seed), noise(model, "off"), torch.no_grad():
        clean = _logits(model, x)
        moved = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for _ in range(_DIRECTIONS):
            z = within.sample(x, source)
            logits = _logits(model, z)
            moved |= (logits != clean).any(1)
            done.append((margin(logits, y) - margin(clean, y)).double())
            if slopes is not None:
                foretold.append(((z - x) * slopes.of_margin).flatten(1).sum(1).double())
    if slopes is None:
        return Steps(moved, None)
    cosines = F.cosine_similarity(torch.stack(foretold), torch.stack(done), dim=0, eps=1e-30)
    known = moved & slopes.of_margin.flatten(1).any(1)
    return Steps(moved, float(cosines[known].mean()) if known.any() else None)


def batch_difference(model: nn.Module, x: Tensor, seed: int) -> float | None:
    """Return the largest relative change of a logit between inputs [B, ...] alone and together; None of a random model."""
    with undisturbed(model, seed), noise(model, "off"), torch.no_grad():
        if not torch.equal(model(x[:1]), model(x[:1])):
            return None
        together = model(x)
        alone = torch.cat([model(x[i : i + 1]) for i in range(len(x))])
    return float((together - alone).abs().max() / together.abs().max().clamp_min(1e-12))


def batch_limit(x: Tensor) -> float:
    """Return what may be rounding: GPUs take other kernels, of lower precision, for other batch sizes."""
    return 1e-3 if x.device.type == "cpu" else 1e-2


def draws_needed(found: Tensor) -> int:
    """Return the draws after which a mean gradient is right in direction, from single draws' gradients [draws, N, D].

    With s = |E g|² and n the total variance of one draw, two means of k draws have a cosine of about s / (s + n / k); k is
    the least that makes the median input's 0.9, between 10 and 50.
    """
    draws = len(found)
    total, each = found.sum(0).square().sum(1), found.square().sum((0, 2))
    signal = (total - each) / (draws * (draws - 1))
    ratio = (each / draws - signal) / signal.clamp_min(1e-30)
    needed = float(ratio.median()) * _WANTED / (1 - _WANTED)
    return math.ceil(min(max(needed, _FEW), _MANY))


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(part) for part in x.split(_CHUNK)])


def _randomised(judge: Judge, x: Tensor, y: Tensor, differentiable: bool, seed: int) -> tuple[Trait, int]:
    if not judge.randomised:
        trait = Trait(
            code="randomised",
            title="Random answers",
            found=False,
            evidence=f"two calls on the same inputs agree, for {len(x)} inputs.",
            response="one draw for each gradient.",
        )
        return trait, 1
    decisions = judge.logits(x, _DRAWS, "probe").argmax(-1)
    flips = float((decisions != decisions.mode(0).values).float().mean())
    draws = _DRAWS
    if differentiable:
        found: list[list[Tensor]] = [[], []]
        part, labels = x[:_CHUNK], y[:_CHUNK]
        with undisturbed(judge.model, derive(seed, "probe", "draws")), torch.enable_grad():
            for _ in range(_DRAWS):
                leaf = part.detach().clone().requires_grad_()
                logits = judge.model(leaf)
                for kept, loss in zip(found, (cross_entropy, margin), strict=True):
                    value = loss(logits, labels).sum()
                    kept.append(torch.autograd.grad(value, leaf, retain_graph=True)[0].flatten(1).double())
        draws = max(draws_needed(torch.stack(kept)) for kept in found)
    why = "as many as are tried at all" if draws == _MANY else "so that two means point the same way (cosine 0.9)"
    origin = "can be switched off" if judge.switchable else "cannot be switched off"
    trait = Trait(
        code="randomised",
        title="Random answers",
        found=True,
        evidence=f"{flips:.1%} of single draws decide otherwise than most of {_DRAWS}; the noise {origin}.",
        response=f"{draws} draws for each gradient, {why}; beside them attacks "
        "with one draw, on the mean softmax, and on the network without its noise.",
        numbers={"flips": flips, "draws": draws},
    )
    return trait, draws


def _spiking(model: nn.Module, slopes: Slopes | None, steps: Steps | None) -> Trait:
    layers = len(neurons(model))
    agreement = steps.agreement if steps is not None and layers else None
    zero = float((~slopes.of_margin.flatten(1).any(1)).float().mean()) if slopes is not None and layers else None
    said = "" if agreement is None else f"; its gradient and differences agree to {agreement:.2f} (cosine)"
    said += "" if zero is None else f"; {zero:.1%} of inputs have a zero gradient"
    return Trait(
        code="spiking",
        title="Spikes",
        found=layers > 0,
        evidence=f"{layers} layers of spiking neurons{said}.",
        response="attacks under nineteen other derivatives of a spike, and one that adapts to each neuron."
        if layers
        else "none needed.",
        numbers={
            "layers": layers,
            **({} if agreement is None else {"agreement": agreement}),
            **({} if zero is None else {"zero": zero}),
        },
    )


def _detached(model: nn.Module, x: Tensor, slopes: Slopes | None, seed: int) -> Trait:
    numbers, response = {}, "none needed."
    if slopes is None:
        with undisturbed(model, seed), straight_through(model, x[:_CHUNK]), torch.enable_grad():
            straight = bool(model(x[:2].detach().clone().requires_grad_()).requires_grad)
        numbers = {"straight": float(straight)}
        response = "Square, a search without gradients" + (
            ", and the gradient straight through submodules that change little." if straight else " alone."
        )
    return Trait(
        code="no-gradient",
        title="No gradient at all",
        found=slopes is None,
        evidence="as autograd sees it, the output does "
        + ("not depend on the input." if slopes is None else "depend on the input."),
        response=response,
        numbers=numbers,
    )


def _still(
    model: nn.Module, x: Tensor, y: Tensor, slopes: Slopes | None, steps: Steps | None, seed: int
) -> tuple[Trait, ...]:
    """Return why gradients are zero: the softmax rounds to 0 and 1, or the function is made of flat steps."""
    if slopes is None:
        return ()
    flat = ~slopes.of_margin.flatten(1).any(1)
    saturated = float((slopes.still & ~flat).float().mean())
    with undisturbed(model, seed), noise(model, "off"), torch.no_grad():
        top = _logits(model, x).topk(2, 1).values
    lead = float((top[:, 0] - top[:, 1]).median())
    double = _in_double(model, x, y, seed) if saturated > ZERO_SHARE else None
    wide = double is not None and double < saturated / 2
    said = "" if double is None else f" In float64 {double:.1%} have none."
    found = [
        Trait(
            code="saturated-logits",
            title="Saturated softmax",
            found=saturated > ZERO_SHARE,
            evidence=f"{saturated:.1%} of {len(x)} inputs have no gradient of the cross entropy but one of the margin, limit "
            f"{ZERO_SHARE:.0%}; the first logit leads the second by {lead:.3g} (median), and float32 knows no probability "
            f"below exp(-103).{said}",
            response="losses on logits: margin, DLR, and the cross entropy of logits scaled to a lead of 1"
            + ("; the cross entropy in float64." if wide else ".")
            if saturated > ZERO_SHARE
            else "none needed.",
            numbers={"share": saturated, "lead": lead, **({} if double is None else {"float64": double})},
        )
    ]
    if steps is not None and not neurons(model):
        stepped = float((flat & steps.moved).float().mean())
        found.append(
            Trait(
                code="flat-steps",
                title="Flat steps",
                found=stepped > ZERO_SHARE,
                evidence=f"{stepped:.1%} of {len(x)} inputs have no gradient of the margin although their logits change "
                f"within the threat set; the limit is {ZERO_SHARE:.0%}.",
                response="the gradient straight through rounding and quantisers, and Square, a search without gradients."
                if stepped > ZERO_SHARE
                else "none needed.",
                numbers={"share": stepped},
            )
        )
    return tuple(found)


def _in_double(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> float | None:
    """Return the share of inputs without a gradient of the cross entropy in float64; None if the model does not run so."""
    with undisturbed(model, seed), noise(model, "off"):
        if neurons(model) or not runs_in_double(model, x[:2]):
            return None
        slopes = gradients(Doubled(model).eval(), x.double(), y, seed)
    return None if slopes is None else float(slopes.still.float().mean())


def _misleading(model: nn.Module, slopes: Slopes | None, steps: Steps | None) -> Trait | None:
    if steps is None or steps.agreement is None or neurons(model):
        return None
    found = steps.agreement < AGREEMENT
    return Trait(
        code="misleading-gradient",
        title="The gradient is another function's",
        found=found,
        evidence=f"towards {_DIRECTIONS} random points of the threat set, the margin's changes agree with those that its "
        f"gradient foretells to {steps.agreement:.2f} (mean cosine; 1 is a linear model, 0 no information); the limit is "
        f"{AGREEMENT:g}.",
        response="the gradient straight through submodules that change little, and Square, a search without gradients."
        if found
        else "none needed.",
        numbers={"agreement": steps.agreement},
    )


def _batch(model: nn.Module, x: Tensor, seed: int) -> Trait | None:
    difference = batch_difference(model, x[:_COMPANY], seed)
    if difference is None:
        return None
    return Trait(
        code="batch",
        title="Logits depend on the batch",
        found=difference > batch_limit(x),
        evidence=f"largest relative change of a logit between batch 1 and batch {len(x[:_COMPANY])}: {difference:.1e}.",
        response="none: the number holds for these batches only, see the flag."
        if difference > batch_limit(x)
        else "none needed.",
        numbers={"change": difference},
    )


def _training(model: nn.Module, x: Tensor, seed: int) -> Trait:
    leaks = training_leaks(model, x[:_COMPANY], seed)
    if not leaks.places:
        evidence = "after eval() every submodule evaluates, before and after a call, and no dropout drops."
    else:
        evidence = (
            f"after eval() still training: {leaks.named()}. Made to evaluate, {leaks.changed:.0%} of {leaks.inputs} inputs "
            "get other logits, where 0 % should."
        )
    return Trait(
        code="train-mode",
        title="Training goes on in evaluation mode",
        found=bool(leaks.places),
        evidence=evidence,
        response="none: the model is judged as it behaves, see the flag." if leaks.places else "none needed.",
        numbers={"places": len(leaks.places), "changed": leaks.changed},
    )
