"""What boxes of weights do to a network: the worst that an attack finds in one, and what is proven of all of one."""

import torch
from torch import Tensor, nn

from stalwart.attacks import attack
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
