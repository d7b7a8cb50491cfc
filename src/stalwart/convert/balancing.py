"""Threshold balancing as a method among the others."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stalwart.convert.balance import balance_thresholds
from stalwart.convert.method import Method
from stalwart.core.numbers import Number, require
from stalwart.spiking import LIF, SpikingNetwork, set_steps


@dataclass(frozen=True, kw_only=True)
class Balancing(Method):
    """Thresholds as high as the largest current of a layer, balanced on the spikes of the layers before; spikes are 0 or 1.

    See :func:`stalwart.convert.balance_thresholds`. Needs many steps; batch norm is folded.

    Attributes:
        percentile: of the currents, in (0, 100]; 100 is their maximum.
        balancing_steps: time steps of the balancing.
    """

    percentile: Number = 100.0
    balancing_steps: int = 100

    def __post_init__(self) -> None:
        require(0 < self.percentile <= 100, f"the percentile must lie in (0, 100], got {self.percentile}.")
        require(self.balancing_steps >= 1, f"balancing_steps must be at least 1, got {self.balancing_steps}.")

    def neurons(self, activation: nn.Module, shape: tuple[int, ...]) -> LIF:
        """Return neurons of binary spikes."""
        return LIF(1.0, 1.0, reset="soft")

    @torch.no_grad()
    def settle(self, network: SpikingNetwork, plain: nn.Module, paths: list[str], x: Tensor) -> None:
        """Balance the layers in order."""
        deployed = network.steps
        set_steps(network, self.balancing_steps)
        try:
            balance_thresholds(network, x, float(self.percentile))
        finally:
            set_steps(network, deployed)
