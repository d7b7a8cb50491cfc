"""How steep the loss is around the weights: the slope along random directions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.attacks.replaced import run_with
from stalwart.core.checks import check_labels
from stalwart.core.modes import evaluating
from stalwart.core.noise import noise
from stalwart.core.numbers import require
from stalwart.core.random import derive, generator, normal
from stalwart.evaluation.results import Record
from stalwart.hardware.names import choose

_BATCH = 250


class Landscape(Record):
    """Loss along random directions v ~ N(0, level |theta|) through the weights.

    Attributes:
        level: standard deviation of a direction as a share of each weight.
        distances: how far along a direction, in units of v.
        losses: mean cross entropy at theta + distance v, one list a direction.
        slope: mean |change of the loss| / change of the distance, over neighbouring distances and directions.
    """

    level: float
    distances: list[float]
    losses: list[list[float]]
    slope: float


def landscape(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    level: float = 0.2,
    directions: int = 5,
    reach: float = 2.0,
    points: int = 9,
    seed: int = 0,
) -> Landscape:
    """Measure the loss along random directions through weight matrices and their biases; the model is left as it was.

    Source: Büchel, Faber, Muir, ICLR 2022 (arXiv 2106.05009), section 3.4.

    Args:
        model: maps [B, ...] to logits [B, K]; of a randomised one every loss takes the same draws.
        x: inputs [N, ...].
        y: labels [N].
        level: standard deviation of a direction as a share of each weight.
        directions: how many.
        reach: the largest distance, either way.
        points: distances from -reach to reach, at least 2.
        seed: of the directions.

    Raises:
        InputError: labels that do not fit.
        UsageError: a number out of range.
    """
    require(level > 0, f"level must be positive, got {level}.")
    require(directions >= 1, f"directions must be at least 1, got {directions}.")
    require(reach > 0, f"reach must be positive, got {reach}.")
    require(points >= 2, f"points must be at least 2, got {points}.")
    check_labels(y, len(x))
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    weights = {name: named[name] for name in choose(named, (), biases=True)}
    distances = torch.linspace(-reach, reach, points, dtype=torch.float64).tolist()
    losses = []
    for number in range(directions):
        source = generator(seed, "direction", number)
        direction = {
            name: level * weight.abs() * normal(weight.shape, source, weight, batch_axis=None)
            for name, weight in weights.items()
        }
        losses.append(
            [
                _loss(model, {name: w + distance * direction[name] for name, w in weights.items()}, x, y, seed)
                for distance in distances
            ]
        )
    changes = torch.tensor(losses, dtype=torch.float64).diff(dim=1).abs()
    return Landscape(
        level=level,
        distances=distances,
        losses=losses,
        slope=float(changes.mean()) / (distances[1] - distances[0]),
    )


@torch.no_grad()
def _loss(model: nn.Module, weights: dict[str, Tensor], x: Tensor, y: Tensor, seed: int) -> float:
    with evaluating(model), noise(model, "on", seed=derive(seed, "noise")):
        pairs = zip(x.split(_BATCH), y.long().split(_BATCH), strict=True)
        total = sum(float(F.cross_entropy(run_with(model, weights, a), b, reduction="sum")) for a, b in pairs)
    return total / len(x)
