"""The worst weights near a network, in a box around them or a few stored bits away, and what is proven of all of a box."""

import torch
from torch import Tensor, nn

from stalwart.attacks import BitBudget, attack
from stalwart.bounds import margin_bound
from stalwart.core.errors import StalwartError
from stalwart.core.modes import evaluating
from stalwart.core.random import derive
from stalwart.evaluation.results import Record
from stalwart.hardware.names import choose
from stalwart.sets import RelativeBox

_STEPS, _RESTARTS = 10, 3
_BATCH = 250


class WorstWeights(Record):
    """Accuracy at the worst weights that an attack found in a box, and at the worst of some random corners of it."""

    fraction: float
    attacked: float
    corner: float


class WorstBits(Record):
    """Accuracy after the worst flips of stored bits that an attack found.

    Attributes:
        flips: at most so many, of 8-bit codes.
        attacked: accuracy.
        refused: why there is no figure; empty where there is one.
    """

    flips: int
    attacked: float = 0.0
    refused: str = ""


class CertifiedWeights(Record):
    """The share of inputs that every network in a box of weights answers rightly, proven by interval bounds.

    Attributes:
        fraction: half-width of the box as a share of each weight.
        certified: the share.
        refused: why there is no figure; empty where there is one.
    """

    fraction: float
    certified: float = 0.0
    refused: str = ""


def box_of(model: nn.Module, fraction: float) -> RelativeBox:
    """Return the box around what mismatch moves: weight matrices and their biases, no normalisation."""
    return RelativeBox(fraction, tuple(choose(dict(model.named_parameters()), (), biases=True)))


def worst_weights(model: nn.Module, x: Tensor, y: Tensor, fraction: float, seed: int) -> WorstWeights:
    """Attack the weights in a box of half-width ``fraction``: 10 steps, three starts, one set of weights for all inputs."""
    box = box_of(model, fraction)
    left = []
    for name, options in (("weight-pgd", {"steps": _STEPS, "restarts": _RESTARTS}), ("weight-corner", {})):
        found = attack(name, **options)(model, x, y, within=box, seed=derive(seed, name))
        left.append(1 - float(found.success.float().mean()))
    return WorstWeights(fraction=fraction, attacked=left[0], corner=left[1])


def worst_bits(model: nn.Module, x: Tensor, y: Tensor, flips: int, seed: int) -> WorstBits:
    """Attack the 8-bit codes of all weights: ``flips`` bits at most."""
    try:
        found = attack("weight-bitflip")(model, x, y, within=BitBudget(flips), seed=derive(seed, "bits"))
    except StalwartError as problem:
        return WorstBits(flips=flips, refused=str(problem))
    return WorstBits(flips=flips, attacked=1 - float(found.success.float().mean()))


def certified_weights(model: nn.Module, x: Tensor, y: Tensor, fraction: float) -> CertifiedWeights:
    """Prove what interval bounds can of a box of weights; a model that they cannot walk says why."""
    try:
        with evaluating(model), torch.no_grad():
            box = box_of(model, fraction)
            pairs = zip(x.split(_BATCH), y.split(_BATCH), strict=True)
            proven = sum(int((margin_bound(model, a, b, weights=box, method="ibp") > 0).sum()) for a, b in pairs)
    except StalwartError as problem:
        return CertifiedWeights(fraction=fraction, refused=str(problem))
    return CertifiedWeights(fraction=fraction, certified=proven / len(x))
