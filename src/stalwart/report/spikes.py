"""Spiking networks in the report: what neurons do, what it costs, and what fewer time steps would give."""

from collections.abc import Iterable
from typing import Any

import pydantic
import torch
from torch import Tensor, nn

from stalwart.attacks.guard import undisturbed
from stalwart.attacks.surrogate_ensemble import members_of
from stalwart.attacks.table import ATTACKS
from stalwart.core.hooks import removing
from stalwart.core.noise import is_random
from stalwart.core.registry import build
from stalwart.evaluation.results import Rate, Record
from stalwart.sets import ThreatSet
from stalwart.spiking import LIF, monitor, neurons, spiking_networks
from stalwart.spiking.period import period
from stalwart.stochastic import scores

_SAMPLES = 256
_POINTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_ROWS, _CURVES = 60, 3
_ATTACKED = 64
_FEW = 16
_ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "FGSM": ("fgsm", {}),
    "PGD-10, CE": ("pgd", {"steps": 10}),
    "PGD-10, margin": ("pgd", {"steps": 10, "loss": "margin"}),
}


class LayerActivity(Record):
    """One layer of neurons: how many a sample, their rate, and the shares that never and always fired.

    ``passing`` is the share of neurons and steps, on a few inputs, at which the assumed derivative of a spike is at least a
    hundredth of its largest value: where it is small, gradients see little of the network.
    """

    layer: str
    neurons: int
    rate: float
    silent: float
    saturated: float
    threshold: float | None
    leak: float | None
    passing: float | None = None


class StepsPoint(Record):
    """Clean accuracy where the output is read after so many steps."""

    steps: int
    accuracy: Rate


class Trace(Record):
    """A few neurons of one layer on one input.

    Attributes:
        layer: the module path.
        spikes: of each neuron, most active first, the steps in which it fired, from 1.
        membranes: of some of them, the membrane that decided on a spike in each step.
        threshold: of those neurons.
    """

    layer: str
    spikes: list[list[int]]
    membranes: list[list[float]]
    threshold: float


class GradientRow(Record):
    """What one assumed gradient of a spike leaves: accuracy by attack, in the order of ``Spikes.attacks``."""

    gradient: str
    left: list[float]


class Spikes(Record):
    """What a spiking network does on the first ``samples`` inputs of its evaluation.

    Attributes:
        steps: T.
        layers: in order.
        macs, acs: multiply-accumulates and accumulates of one input; ann_macs those of the same layers without time.
        picojoules, ann_picojoules: their energy by the figures of 45 nm (Horowitz, ISSCC 2014); memory is not counted.
        over_steps: accuracy against time steps; empty for neurons that cannot stop on the way.
        traces: a picture of each of the first and last layer.
        attacks, gradients: accuracy under each attack (a column) with each assumed gradient of a spike (a row), at the radius
            of the evaluation on its first ``attacked`` inputs; empty where the suite is not that of spiking networks.
    """

    samples: int
    steps: int
    layers: list[LayerActivity]
    macs: float
    acs: float
    ann_macs: float
    picojoules: float
    ann_picojoules: float
    over_steps: list[StepsPoint]
    traces: list[Trace]
    attacked: int = 0
    attacks: list[str] = pydantic.Field(default_factory=list)
    gradients: list[GradientRow] = pydantic.Field(default_factory=list)


def watch_spikes(
    model: nn.Module, x: Tensor, y: Tensor, seed: int = 0, within: ThreatSet | None = None
) -> Spikes | None:
    """Return what a model's neurons do on inputs [N, ...] with labels [N]; None if it has no spiking network.

    With a threat set, attacks are run under one assumed gradient after another as well.
    """
    networks = spiking_networks(model)
    if len(networks) != 1:
        return None
    x, y, steps = x[:_SAMPLES], y[:_SAMPLES], networks[0].steps
    with undisturbed(model, seed), torch.no_grad():
        with monitor(model) as seen:
            for part in x.split(64):
                model(part)
        found = neurons(model)
        plain = {path: layer for path, layer in found.items() if isinstance(layer, LIF)}
        passing = dict(zip(plain, map(_passing, plain.values(), _seen(model, plain.values(), x[:_FEW])), strict=True))
        layers = []
        for path, one in seen.layers.items():
            layer = found[path]
            numbers = [
                float(value.mean()) if isinstance(value, Tensor) else None
                for value in (getattr(layer, "threshold", None), getattr(layer, "leak", None))
            ]
            layers.append(
                LayerActivity(
                    layer=path,
                    neurons=one.counts.numel(),
                    rate=one.rate,
                    silent=one.silent,
                    saturated=one.saturated,
                    threshold=numbers[0],
                    leak=numbers[1],
                    passing=passing.get(path),
                )
            )
        resumes = len(plain) == len(found) and networks[0].wait == 0
        over = _over_steps(model, x, y, steps) if resumes else []
        shown = list(dict.fromkeys([next(iter(plain)), list(plain)[-1]])) if plain else []
        seen_there = _seen(model, [plain[path] for path in shown], x[:1])
        traces = [_trace(plain[path], path, *one) for path, one in zip(shown, seen_there, strict=True)]
    rows = [] if within is None else _gradients(model, x[:_ATTACKED], y[:_ATTACKED], within, seed)
    energy, ann_energy = seen.picojoules
    return Spikes(
        samples=len(x),
        steps=steps,
        layers=layers,
        macs=seen.macs,
        acs=seen.acs,
        ann_macs=float(seen.ann_macs),
        picojoules=energy,
        ann_picojoules=ann_energy,
        over_steps=over,
        traces=traces,
        attacked=min(len(x), _ATTACKED) if rows else 0,
        attacks=list(_ATTACKS) if rows else [],
        gradients=rows,
    )


def _gradients(model: nn.Module, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> list[GradientRow]:
    eot = 10 if is_random(model) else 1
    rows = []
    own: dict[str, dict[str, Any]] = {"own": {}}
    for gradient, member in (own | members_of(model)).items():
        left = []
        for name, options in _ATTACKS.values():
            attack = build("attack", ATTACKS, name, {**options, **member, "eot": eot})
            left.append(float((~attack(model, x, y, within, seed).success).float().mean()))
        rows.append(GradientRow(gradient=gradient, left=left))
    return rows


def _over_steps(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> list[StepsPoint]:
    points = []
    for last in [*(one for one in _POINTS if one < steps), steps]:
        with period(0, last, {}):
            right = sum(int((scores(model, a, "single").argmax(1) == b).sum()) for a, b in _parts(x, y))
        points.append(StepsPoint(steps=last, accuracy=Rate.of(right, len(x))))
    return points


def _parts(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(64), y.split(64), strict=True))


def _seen(model: nn.Module, layers: Iterable[LIF], x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the currents that each layer gets and what it sends, [T, B, ...] each, in one pass."""
    caught: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def catch(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        caught.setdefault(module, (inputs[0], out))

    layers = list(layers)
    if not layers:
        return []
    hooks = [layer.register_forward_hook(catch) for layer in layers]
    with removing(hooks):
        model(x)
    return [caught[layer] for layer in layers]


def _passing(layer: LIF, seen: tuple[Tensor, Tensor]) -> float:
    """Return at which share of membranes the layer's own surrogate is at least a hundredth of its peak."""
    z = layer.membranes(seen[0]) / layer.threshold - 1
    surrogate = layer.assumed(layer.threshold)
    return float((surrogate.slope(z) >= surrogate.slope(torch.zeros(1)) / 100).float().mean())


def _trace(layer: LIF, path: str, currents: Tensor, out: Tensor) -> Trace:
    fired, decided = (out[:, 0] != 0).long().flatten(1), layer.membranes(currents)[:, 0].flatten(1)
    order = fired.sum(0).argsort(descending=True, stable=True)[:_ROWS]
    few = order[:: max(1, len(order) // _CURVES)][:_CURVES]
    return Trace(
        layer=path,
        spikes=[(fired[:, n].nonzero()[:, 0] + 1).tolist() for n in order.tolist()],
        membranes=[decided[:, n].tolist() for n in few.tolist()],
        threshold=float(layer.threshold.mean()),
    )
