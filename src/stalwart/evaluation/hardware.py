"""What a network keeps on imperfect processors: chips of each device, the worst weights nearby, which layer matters."""

import contextlib
from pathlib import Path

import pydantic
import torch
from torch import Tensor, nn

from stalwart.core.errors import StalwartError
from stalwart.core.modes import evaluating
from stalwart.core.noise import noise
from stalwart.core.progress import Advance, silent
from stalwart.core.random import derive
from stalwart.evaluation.chip_activity import ChipActivity, chip_activity
from stalwart.evaluation.landscape import Landscape, landscape
from stalwart.evaluation.results import Record
from stalwart.evaluation.sweep import Level, Unit, sweep
from stalwart.evaluation.weight_boxes import (
    CertifiedWeights,
    WorstBits,
    WorstWeights,
    certified_weights,
    worst_bits,
    worst_weights,
)
from stalwart.hardware import Mismatch, accuracies, summarise
from stalwart.hardware.names import choose

WITHIN = 0.02
"""How far below the network itself the worst chip may be where a level counts as safe."""
_FRACTIONS = (0.01, 0.05, 0.1)
_FLIPS = (1, 5, 20)
_PROVEN = (1e-4, 5e-4, 1e-3, 5e-3, 1e-2)
_SENSITIVE, _FEW = 0.3, 5
_BATCH = 250


class ChipsRow(Record):
    """Chips of one device: accuracies as shares in [0, 1].

    Attributes:
        block: of devices whose levels grow.
        device: what it is, each level with its unit.
        level: in the block's unit.
        chips: how many; 1 where a device is the same on each.
        mean, std, minimum, fifth: over the chips; fifth is the 5th percentile.
        interval: 95 % of the mean, by bootstrap.
        accuracies: of each chip.
        unit: what a level counts.
        refused: why there are no figures; empty where there are.
        activity: what neurons do on a few of the chips; None for networks without.
    """

    block: str
    device: str
    level: float
    chips: int
    mean: float = 0.0
    std: float = 0.0
    minimum: float = 0.0
    fifth: float = 0.0
    interval: tuple[float, float] = (0.0, 0.0)
    accuracies: list[float] = pydantic.Field(default_factory=list)
    unit: Unit = "share"
    refused: str = ""
    activity: ChipActivity | None = None


class Layer(Record):
    """Mean accuracy where the weights of one layer alone have mismatch."""

    parameter: str
    mean: float


class HardwareResult(Record):
    """What devices leave of a network.

    Attributes:
        samples: inputs, the first so many of the evaluation.
        baseline: accuracy of the network itself.
        rows: of each device.
        worst: at the worst weights nearby.
        layers: the most sensitive first, under mismatch of 30 %.
        safe: by block, the largest level up to which the worst chip stays within two points; None where none does.
        certified: what is proven of boxes of weights.
        bits: at the worst flips of stored bits.
        area: mean accuracy over mismatch from none to the largest level of the sweep, by the trapezoidal rule.
        landscape: how steep the loss is around the weights.
        activity: what the neurons of the network itself do; None where it has none.
    """

    samples: int
    baseline: float
    rows: list[ChipsRow]
    worst: list[WorstWeights]
    layers: list[Layer]
    safe: dict[str, float | None]
    certified: list[CertifiedWeights] = pydantic.Field(default_factory=list)
    bits: list[WorstBits] = pydantic.Field(default_factory=list)
    area: float | None = None
    landscape: Landscape | None = None
    activity: ChipActivity | None = None


def steps(model: nn.Module | None = None) -> int:
    """Return how many steps :func:`measure` of a model reports to ``advance``."""
    return sum(1 for _ in sweep(model)) + len(_FRACTIONS) + len(_FLIPS) + 3


def measure(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    seed: int = 0,
    chips: int = 25,
    advance: Advance = silent,
    kept: Path | None = None,
) -> HardwareResult:
    """Measure a model on all devices of the suite; it is left as it was.

    Args:
        model: maps [B, ...] to logits [B, K].
        x: inputs [N, ...].
        y: labels [N].
        seed: of the chips.
        chips: of each device; 100 for publication.
        advance: called with the number of steps done.
        kept: a folder for accuracies of chips, so that a killed measurement goes on.
    """
    done, rows = 0, []
    baseline = _baseline(model, x, y)
    for one in sweep(model):
        rows.append(_row(one, model, x, y, 1 if one.fixed else chips, seed, kept, baseline))
        done += 1
        advance(done, rows[-1].device)
    worst = []
    for fraction in _FRACTIONS:
        worst.append(worst_weights(model, x, y, fraction, seed))
        done += 1
        advance(done, f"worst weights within {fraction:g}")
    bits = []
    for flips in _FLIPS:
        bits.append(worst_bits(model, x, y, flips, seed))
        done += 1
        advance(done, f"worst {flips} bits")
    certified = [certified_weights(model, x, y, fraction) for fraction in _PROVEN]
    advance(done + 1, "proofs for boxes of weights")
    steep = landscape(model, x, y, seed=derive(seed, "landscape"))
    advance(done + 2, "slope of the loss")
    layers = _layers(model, x, y, seed)
    advance(done + 3, "layers")
    return HardwareResult(
        samples=len(x),
        baseline=baseline,
        rows=rows,
        worst=worst,
        layers=layers,
        safe=_safe(rows, baseline),
        certified=certified,
        bits=bits,
        area=_area([row for row in rows if row.block == "mismatch"], baseline),
        landscape=steep,
        activity=chip_activity(model, x),
    )


@torch.no_grad()
def _baseline(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with evaluating(model), noise(model, "on", seed=0):
        pairs = zip(x.split(_BATCH), y.split(_BATCH), strict=True)
        right = sum(int((model(part).argmax(1) == labels).sum()) for part, labels in pairs)
    return right / len(x)


def _row(
    one: Level, model: nn.Module, x: Tensor, y: Tensor, chips: int, seed: int, kept: Path | None, baseline: float
) -> ChipsRow:
    path = None if kept is None else kept / f"{one.block}-{one.level:g}.safetensors".replace(" ", "-").replace("%", "")
    try:
        found = accuracies(model, one.device, x, y, chips, derive(seed, one.block), path=path)
        activity = chip_activity(model, x, one.device, derive(seed, one.block), chips)
    except StalwartError as problem:
        return ChipsRow(
            block=one.block,
            device=one.device.describe(),
            level=one.level,
            unit=one.unit,
            chips=0,
            refused=str(problem),
        )
    s = summarise(found, baseline, derive(seed, "bootstrap"))
    return ChipsRow(
        block=one.block,
        device=one.device.describe(),
        level=one.level,
        unit=one.unit,
        chips=s.chips,
        mean=s.mean,
        std=s.std,
        minimum=s.minimum,
        fifth=s.low,
        interval=s.interval,
        accuracies=found.tolist(),
        activity=activity,
    )


def _area(rows: list[ChipsRow], baseline: float) -> float | None:
    if any(row.refused for row in rows):
        return None
    levels = torch.tensor([0.0, *(row.level for row in rows)], dtype=torch.float64)
    means = torch.tensor([baseline, *(row.mean for row in rows)], dtype=torch.float64)
    return float(torch.trapezoid(means, levels) / levels[-1])


def _layers(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> list[Layer]:
    found = []
    for name in choose(dict(model.named_parameters()), (), biases=False):
        with contextlib.suppress(StalwartError):  # a layer of zeros has nothing to move
            value = accuracies(model, Mismatch(_SENSITIVE, only=name), x, y, _FEW, derive(seed, "layer"))
            found.append(Layer(parameter=name, mean=float(value.mean())))
    return sorted(found, key=lambda layer: layer.mean)


def _safe(rows: list[ChipsRow], baseline: float) -> dict[str, float | None]:
    safe: dict[str, float | None] = {}
    broken: set[str] = set()
    for row in rows:
        safe.setdefault(row.block, None)
        fine = not row.refused and row.minimum >= baseline - WITHIN
        if fine and row.block not in broken:
            safe[row.block] = row.level
        if not fine:
            broken.add(row.block)
    return safe
