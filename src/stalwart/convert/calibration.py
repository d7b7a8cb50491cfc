"""Corrections layer by layer: what a layer of neurons gives too little on average is added to it."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from stalwart.convert.activity import activations, neurons_at, outputs
from stalwart.convert.rate import Rate
from stalwart.core.numbers import Number
from stalwart.spiking import LIF, SpikingNetwork


@dataclass(frozen=True, kw_only=True)
class Calibration(Rate):
    """Thresholds that are best for T steps, θ / (2 T) more current in each, and then what is still missing.

        light:     I ← I + (ā_ANN - ā_SNN), one a channel, in every step
        advanced:  v₀ ← T (ā_ANN - ā_SNN), one a neuron, before the first

    Each layer is corrected when those before it are. Numbers are right for these T steps only: calibrate again for others.
    Source: Li et al., "A free lunch from ANN: towards efficient, accurate spiking neural networks calibration", ICML 2021,
    equations 10 to 14 and code.

    Attributes:
        correction: "light", "advanced" or "none".
    """

    start: Number = 0.0
    correction: Literal["light", "advanced", "none"] = "light"

    def neurons(self, activation: nn.Module, shape: tuple[int, ...]) -> LIF:
        """Return neurons with a current of their own, and a first membrane where that is corrected."""
        own, channel = self.shape(shape), (shape[0], *[1] * (len(shape) - 1))
        initial = shape if self.correction == "advanced" else own
        return LIF(1.0, 1.0, own, reset=self.reset, extras={"height": own, "initial": initial, "bias": channel})

    @torch.no_grad()
    def settle(self, network: SpikingNetwork, plain: nn.Module, paths: list[str], x: Tensor) -> None:
        """Set thresholds, then correct one layer after another."""
        super().settle(network, plain, paths, x)
        for path in paths:
            neuron = neurons_at(network, path)
            neuron.fill(bias=(neuron.threshold / (2 * network.steps)))
        for path in paths if self.correction != "none" else []:
            neuron = neurons_at(network, path)
            missing = (activations(plain, path, x) - outputs(network, path, x)).mean(0)
            if self.correction == "light":
                assert neuron.bias is not None
                by_channel = missing.flatten(1).mean(1) if missing.dim() > 1 else missing
                neuron.fill(bias=neuron.bias + by_channel.reshape(neuron.bias.shape))
            else:
                assert neuron.initial is not None
                neuron.fill(initial=neuron.initial + network.steps * missing)
