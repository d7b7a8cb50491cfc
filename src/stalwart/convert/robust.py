"""Robust conversion: low thresholds and binary spikes, to be fine-tuned together with the weights of a robust network."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from stalwart.convert.activity import caught, neurons_at, order_statistic, thinned
from stalwart.convert.method import Method, positive
from stalwart.core.layers import NORMS
from stalwart.core.numbers import Number, require
from stalwart.spiking import LIF, SpikingNetwork, set_steps
from stalwart.spiking.surrogates import Triangle

_FLOOR = 0.03


@dataclass(frozen=True, kw_only=True)
class Robust(Method):
    """Thresholds ρ times the 99.7 percentile of a layer's currents over 100 steps, layer after layer; batch norm starts anew.

    Spikes are 0 or 1, thresholds are trained, batch norm stays: it uses the statistics of the batch here, and learns running
    ones while the network is fine-tuned, without which its accuracy means little. A deeper layer is balanced on the spikes
    that layers before it really send.
    Source: Özdenizci and Legenstein, "Adversarially robust spiking neural networks through conversion", TMLR 2024
    (arXiv 2311.09266), section 3 and code.

    Attributes:
        percentile: of the currents of each batch, over neurons, samples and steps; the largest of all batches counts.
        rho: ρ, what the thresholds are multiplied by, in (0, 1].
        balancing_steps: time steps of the balancing.
        batches, batch: how many training batches, of how many inputs.
        reset: "hard", as theirs, or "soft".
        gamma: half the width of the triangle that gradients go through, in units of membranes, as are those of attacks then.
    """

    folds: ClassVar[bool] = False

    percentile: Number = 99.7
    rho: Number = 0.3
    balancing_steps: int = 100
    batches: int = 11
    batch: int = 64
    reset: Literal["hard", "soft"] = "hard"
    gamma: Number = 1.0

    def __post_init__(self) -> None:
        require(0 < self.percentile <= 100, f"the percentile must lie in (0, 100], got {self.percentile}.")
        require(0 < self.rho <= 1, f"rho must lie in (0, 1], got {self.rho}.")
        for name in ("balancing_steps", "batches", "batch"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}.")
        require(self.gamma > 0, f"gamma must be positive, got {self.gamma}.")

    def neurons(self, activation: nn.Module, shape: tuple[int, ...]) -> LIF:
        """Return neurons of binary spikes with one trained threshold."""
        return LIF(
            1.0,
            1.0,
            trained=("threshold",),
            reset=self.reset,
            detach_reset=False,
            surrogate=Triangle(self.gamma),
            floor=_FLOOR,
            unit="membrane",
        )

    @torch.no_grad()
    def settle(self, network: SpikingNetwork, plain: nn.Module, paths: list[str], x: Tensor) -> None:
        """Balance the layers in order, and clear the statistics of batch norm."""
        norms = [layer for layer in network.layers.modules() if isinstance(layer, NORMS)]
        deployed = network.steps
        parts = x[: self.batches * self.batch].split(self.batch)
        set_steps(network, self.balancing_steps)
        for norm in norms:
            norm.train()
        try:
            for path in paths:
                neuron = neurons_at(network, path)
                values = [self._high(network, neuron, part) for part in parts]
                neuron.fill(threshold=positive(torch.stack(values).max(), path))
        finally:
            for norm in norms:
                norm.eval()
                norm.reset_running_stats()
            set_steps(network, deployed)
        for path in paths:
            neuron = neurons_at(network, path)
            neuron.fill(threshold=self.rho * neuron.threshold)

    def _high(self, network: SpikingNetwork, neuron: LIF, part: Tensor) -> Tensor:
        (currents,) = caught(network, neuron, [part], inputs=True)
        return order_statistic(thinned(currents), float(self.percentile))[0]
