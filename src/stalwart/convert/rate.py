"""Rates for activations: thresholds as high as what an activation gives, spikes worth their threshold."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from stalwart.convert.activity import activations, by_channel, neurons_at, order_statistic, thinned
from stalwart.convert.method import Method, positive
from stalwart.core.numbers import Number, require
from stalwart.spiking import LIF, SpikingNetwork

_SHARES = 95


@dataclass(frozen=True, kw_only=True)
class Rate(Method):
    """Neurons whose threshold θ is about the largest of the ANN's activations, and whose spikes are worth θ.

    With a soft reset and a constant current z a neuron's mean output is z - (v[T] - v[0]) / T below θ. To scale spikes by θ is
    to scale the weights behind them, as the source does. "mse" takes the θ of max (1 - i / 100), i < 95, whose outputs after T
    steps are nearest to the activations.
    Source: Rueckauer et al., "Conversion of continuous-valued deep networks to efficient event-driven networks for image
    classification", 2017, section 2.2; Li et al., ICML 2021, for "mse".

    Attributes:
        threshold: "max", "percentile" or "mse" of the activations.
        percentile: for "percentile", in (0, 100].
        per: one threshold a "layer" or a "channel".
        start: membranes before the first step as a share of θ, in [0, 1); 1/2 makes up for what neurons have not fired yet.
        reset: "soft", or "hard", which loses what exceeds θ.
    """

    threshold: Literal["max", "percentile", "mse"] = "mse"
    percentile: Number = 99.9
    per: Literal["layer", "channel"] = "layer"
    start: Number = 0.5
    reset: Literal["soft", "hard"] = "soft"

    def __post_init__(self) -> None:
        require(0 < self.percentile <= 100, f"the percentile must lie in (0, 100], got {self.percentile}.")
        require(0 <= self.start < 1, f"start must lie in [0, 1), got {self.start}.")

    def neurons(self, activation: nn.Module, shape: tuple[int, ...]) -> LIF:
        """Return neurons with a threshold a layer or a channel."""
        own = self.shape(shape)
        return LIF(1.0, 1.0, own, reset=self.reset, extras={"height": own, "initial": own})

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a threshold."""
        return () if self.per == "layer" else (shape[0], *[1] * (len(shape) - 1))

    @torch.no_grad()
    def settle(self, network: SpikingNetwork, plain: nn.Module, paths: list[str], x: Tensor) -> None:
        """Set thresholds by what the ANN's activations are."""
        for path in paths:
            self.set_threshold(neurons_at(network, path), self.found(plain, path, x, network.steps))

    def set_threshold(self, neuron: LIF, threshold: Tensor) -> None:
        """Set the threshold [R] of a layer, what its spikes are worth, and where its membranes start."""
        value = threshold.reshape(neuron.threshold.shape)
        neuron.fill(threshold=value, height=value, initial=self.start * value)

    def found(self, plain: nn.Module, path: str, x: Tensor, steps: int) -> Tensor:
        """Return the threshold of one activation, [1] or one a channel [C]."""
        return self.threshold_of(activations(plain, path, x), path, steps)

    def threshold_of(self, values: Tensor, path: str, steps: int) -> Tensor:
        """Return the threshold of activations [N, ...], [1] or one a channel [C]; ``path`` names them in errors."""
        rows = thinned(values) if self.per == "layer" else by_channel(values)
        if self.threshold == "percentile":
            return positive(order_statistic(rows, float(self.percentile)), path)
        highest = positive(rows.amax(1), path)
        return highest if self.threshold == "max" else self._nearest(rows, highest, steps)

    def _nearest(self, rows: Tensor, highest: Tensor, steps: int) -> Tensor:
        least, best = torch.full_like(highest, torch.inf), highest
        for i in range(_SHARES):
            threshold = highest * (1 - i / 100)
            level = (rows * (steps / threshold[:, None]) + self.start).floor_().clamp_(0, steps)
            error = (level.mul_(threshold[:, None] / steps) - rows).square_().sum(1)
            best = best.where(error >= least, threshold)
            least = least.minimum(error)
        return best
