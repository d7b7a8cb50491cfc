"""Neurons of one time step whose threshold follows the distribution of their own membranes."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stalwart.core.hooks import removing
from stalwart.core.numbers import Number, require
from stalwart.spiking.neurons import Neurons
from stalwart.spiking.spike import spike
from stalwart.spiking.surrogates import Surrogate, find_surrogate


@dataclasses.dataclass(frozen=True)
class OneStep(Surrogate):
    """σ' = 1/2 where 0 < z + 1 <= 2, z + 1 the membrane in units of θ. Source: Datta et al., 2022 (arXiv 2212.10170)."""

    def slope(self, z: Tensor) -> Tensor:
        """Return σ'(z)."""
        return 0.5 * ((z > -1) & (z <= 1)).to(z)


def hoyer_threshold(z: Tensor, channels: bool = False) -> Tensor:
    """Return Σ c² / Σ c with c = clip(z, 0, 1), the Hoyer extremum of a layer or of each channel; 1 where nothing is positive.

    Args:
        z: membranes in units of θ, [T, B, C, ...].
        channels: whether channels have thresholds of their own, [C, 1, ...].
    """
    c = z.clamp(0, 1)
    axes = [axis for axis in range(z.dim()) if axis != 2] if channels else list(range(z.dim()))
    square, total = c.square().sum(axes), c.sum(axes)
    found = torch.where(total > 0, square / torch.where(total > 0, total, 1.0), 1.0)
    return found.reshape(-1, *[1] * (z.dim() - 3)) if channels else found


def hoyer_measure(z: Tensor) -> Tensor:
    """Return (Σ |z|)² / Σ z², from 1 for a single value to the number of values where all are alike; 0 for none at all.

    Source: Hoyer, JMLR 2004; as a regulariser Yang, Wen and Li, ICLR 2020 (arXiv 1908.09979), equation 3.
    """
    square = z.square().sum()
    return torch.where(square > 0, z.abs().sum().square() / torch.where(square > 0, square, 1.0), 0.0)


class HoyerNeuron(Neurons):
    """s = 1[u / |θ| >= h] of currents u [T, B, C, ...]; no membrane is kept from step to step, so it is for T = 1.

    h is :func:`hoyer_threshold` of the batch while training, of which a moving average is kept for evaluation; gradients do
    not pass it. A batch norm should stand before.
    Source: Datta, Liu, Aliakbarpour and Beerel, "Hoyer regularizer is all you need for ultra low-latency spiking neural
    networks", 2022 (arXiv 2212.10170), equations 2 to 5.

    Args:
        threshold: θ at the start, not 0; trained.
        channels: how many channels have thresholds h of their own; None for one a layer.
        momentum: share of a new batch in the moving average, in (0, 1].
        surrogate: the derivative of a spike in u / |θ| - 1.

    Raises:
        UsageError: a number out of range, an unknown surrogate.

    Example:
        >>> HoyerNeuron()(torch.tensor([[[0.2, 0.6, 0.9]]]))
        tensor([[[0., 0., 1.]]])
    """

    running: Tensor
    modes: ClassVar[tuple[str, ...]] = ("bptt",)

    def __init__(
        self,
        threshold: Number = 1.0,
        channels: int | None = None,
        momentum: Number = 0.1,
        surrogate: Surrogate | str | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        require(threshold != 0, "the threshold of neurons must not be 0.")
        require(0 < momentum <= 1, f"momentum must lie in (0, 1], got {momentum}.")
        require(channels is None or channels >= 1, f"channels must be at least 1, got {channels}.")
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))
        self.channels, self.momentum = channels, float(momentum)
        self.register_buffer("running", torch.ones(()) if channels is None else torch.ones(channels))
        self.surrogate = OneStep() if surrogate is None else find_surrogate(surrogate)
        self.backward_mode = "bptt"

    def scaled(self, currents: Tensor) -> Tensor:
        """Return the membranes in units of |θ|."""
        return currents / self.threshold.abs()

    def forward(self, currents: Tensor) -> Tensor:
        """Map currents [T, B, C, ...] to spikes of the same shape."""
        z = self.scaled(currents)
        if self.training:
            with torch.no_grad():
                h = hoyer_threshold(z, self.channels is not None)
                self.running.lerp_(h.reshape(self.running.shape).to(self.running), self.momentum)
        else:
            h = self.running.reshape(-1, *[1] * (z.dim() - 3)) if self.channels is not None else self.running
        # The surrogate sees u / |θ| - 1, whatever h: with the step at h only its value changes.
        return _with_step(z, h, self.surrogate)


def _with_step(z: Tensor, h: Tensor, surrogate: Surrogate) -> Tensor:
    slope = spike(z - 1, surrogate)
    return slope + ((z >= h).to(z) - slope).detach()


@contextlib.contextmanager
def collected(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the membranes u / |θ| of every layer of one-step neurons that runs inside the block."""
    found: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, HoyerNeuron)
        found.append(layer.scaled(inputs[0]))

    handles = [one.register_forward_hook(keep) for one in model.modules() if isinstance(one, HoyerNeuron)]
    with removing(handles):
        yield found
