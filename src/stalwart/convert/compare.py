"""How near a spiking network is to the one it was converted from: layer by layer, and in accuracy against time steps."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.convert.activity import activations, neurons_at, outputs, shown
from stalwart.convert.prepare import Findings, prepare
from stalwart.core.modes import evaluating
from stalwart.core.numbers import require
from stalwart.spiking import SpikingNetwork, set_steps

_BATCH = 64
_BUSY = 0.9


@dataclass(frozen=True)
class LayerError:
    """One layer of neurons against the activation it took the place of.

    Attributes:
        path: of the layer.
        error: ‖a - c r‖ / ‖a‖ of activations a and mean outputs r; c is 1 where spikes have heights, else the best number.
        rate: spikes of a neuron in a step, on average.
        threshold: mean threshold.
        floor: what a trained threshold does not fall below; None where it is not trained.
    """

    path: str
    error: float
    rate: float
    threshold: float
    floor: float | None = None

    @property
    def doubts(self) -> list[str]:
        """What speaks against trusting the layer."""
        found = []
        if self.floor is not None and self.threshold <= self.floor:
            found.append(
                f"has its threshold at the floor of {self.floor:g}; train with less weight decay or a higher rho"
            )
        if self.rate > _BUSY:
            found.append("fires in nearly every step, which carries no information; raise its threshold")
        return found


@dataclass(frozen=True)
class Comparison:
    """What a conversion did, and how near its result is.

    Attributes:
        findings: what was replaced, folded and kept.
        layers: each layer of neurons.
        accuracy: of the network before, in [0, 1]; None without labels.
        over_steps: accuracy of the spiking network by time steps, its numbers as they are; empty without labels.
    """

    findings: Findings
    layers: tuple[LayerError, ...]
    accuracy: float | None
    over_steps: dict[int, float]

    def record(self) -> dict[str, Any]:
        """Return the same as plain values for a JSON file."""
        return {
            "replaced": [
                {
                    "layer": shown(one.path),
                    "kind": self.findings.activations[one.path],
                    "error": one.error,
                    "rate": one.rate,
                    "threshold": one.threshold,
                }
                for one in self.layers
            ],
            "folded": {shown(path): shown(into) for path, into in self.findings.folded.items()},
            "kept": self.findings.kept,
            "accuracy": self.accuracy,
            "over_steps": [{"steps": steps, "accuracy": value} for steps, value in self.over_steps.items()],
        }

    def text(self) -> str:
        """Return what ``stalwart convert`` prints."""
        lines = ["replaced  layer                     error   rate  threshold"]
        for one in self.layers:
            kind = self.findings.activations[one.path]
            lines.append(f"{kind:<8}  {shown(one.path):<24} {one.error:6.1%} {one.rate:6.3f}  {one.threshold:9.4g}")
        lines += [f"beware    {shown(one.path)} {what}" for one in self.layers for what in one.doubts]
        lines += [f"folded    {shown(path)} into {shown(into)}" for path, into in self.findings.folded.items()]
        lines += [f"kept      {path} ({kind})" for path, kind in self.findings.kept.items()]
        if self.accuracy is not None:
            lines.append(f"accuracy before: {self.accuracy:.1%}")
            lines.append("steps     " + "  ".join(f"{steps:>6}" for steps in self.over_steps))
            lines.append("accuracy  " + "  ".join(f"{value:6.1%}" for value in self.over_steps.values()))
        return "\n".join(lines)


@torch.no_grad()
def compare(
    model: nn.Module,
    network: SpikingNetwork,
    x: Tensor,
    y: Tensor | None = None,
    over: Sequence[int] = (1, 2, 4, 8, 16, 32),
) -> Comparison:
    """Compare a network with the spiking one it became.

    Args:
        model: the network before.
        network: what :func:`stalwart.convert.convert` made of it.
        x: inputs [N, ...].
        y: their labels [N], for accuracies.
        over: time steps to read the accuracy at; the network's own are added.
    """
    require(len(x) > 0, "there are no inputs to compare the networks on.")
    plain, findings = prepare(model, fold=True, max_pool="spikes")
    layers = []
    with evaluating(plain), evaluating(network):
        for path in findings.activations:
            neuron = neurons_at(network, path)
            a, r = activations(plain, path, x), outputs(network, path, x)
            scale = 1.0 if neuron.height is not None else float((a * r).sum() / r.square().sum().clamp_min(1e-30))
            height = 1.0 if neuron.height is None else neuron.height
            error = float((a - scale * r).norm() / a.norm().clamp_min(1e-30))
            trained = isinstance(neuron.threshold, nn.Parameter)
            threshold, rate = float(neuron.threshold.mean()), float((r / height).mean())
            layers.append(LayerError(path, error, rate, threshold, neuron.floor if trained else None))
        if y is None:
            return Comparison(findings, tuple(layers), None, {})
        times = sorted({*over, network.steps - network.wait})
        before = _accuracy(plain, x, y)
        return Comparison(findings, tuple(layers), before, {steps: _at(network, steps, x, y) for steps in times})


def _at(network: SpikingNetwork, steps: int, x: Tensor, y: Tensor) -> float:
    other = copy.deepcopy(network)
    set_steps(other, steps + network.wait)
    return _accuracy(other, x, y)


def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    right = sum(
        int((model(part).argmax(1) == labels).sum())
        for part, labels in zip(x.split(_BATCH), y.split(_BATCH), strict=True)
    )
    return right / len(x)
