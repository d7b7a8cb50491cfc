"""Recurrent spiking classifiers: an image or a series read piece by piece, one layer of neurons that feed each other, rates."""

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from stalwart.core.errors import InputError
from stalwart.core.numbers import Number, require
from stalwart.models.stack import check_shape
from stalwart.spiking import AdaptiveLIF, RecurrentLIF, find_surrogate
from stalwart.spiking.surrogates import Linear

_LEAK = math.exp(-1 / 5)


class InPieces(nn.Module):
    """Cut inputs into equal pieces, one a time step: [B, C, ...] or [B, L] to [T, B, I].

    The values of each channel, in reading order, form T pieces; a step sees the same piece of every channel. Images in as
    many steps as they have rows are thus read row by row.

    Args:
        shape: of one input, (L,), (C, L) or (C, H, W).
        steps: T; 0 for one row of an image, or one value of a series, a step.
        repeat: for how many steps each piece is shown, at least 1; the layer then gives repeat · T of them.

    Attributes:
        width: I, the values of a step.

    Raises:
        UsageError: a number of steps that does not divide the values of a channel.

    Example:
        >>> InPieces((1, 28, 28))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([28, 2, 28])
    """

    def __init__(self, shape: tuple[int, ...], steps: int = 0, repeat: int = 1) -> None:
        super().__init__()
        channels, values = (1, shape[0]) if len(shape) == 1 else (shape[0], math.prod(shape[1:]))
        own = steps or (shape[1] if len(shape) > 1 else values)
        require(
            0 < own <= values and values % own == 0,
            f"{own} steps cannot share the {values} values of a channel of inputs {tuple(shape)} equally; give a divisor of "
            f"{values}.",
        )
        require(repeat >= 1, f"repeat must be at least 1, got {repeat}.")
        self.shape, self.steps, self.repeat = tuple(shape), own, repeat
        self.width = channels * values // own

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs [B, ...] to pieces [T, B, I].

        Raises:
            InputError: inputs of another shape.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(f"the model takes inputs [B, {', '.join(map(str, self.shape))}], got {list(x.shape)}.")
        by_channel = x.unsqueeze(1) if len(self.shape) == 1 else x.flatten(2)
        pieces = by_channel.unflatten(2, (self.steps, -1)).permute(2, 0, 1, 3).flatten(2)
        return pieces if self.repeat == 1 else pieces.repeat_interleave(self.repeat, 0)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return f"{self.shape}, steps={self.steps}, repeat={self.repeat}"


class Rates(nn.Module):
    """Spikes [T, B, N] to their means over time [B, N]."""

    def forward(self, spikes: Tensor) -> Tensor:
        """Return the firing rates."""
        return spikes.mean(0)


class Counts(nn.Module):
    """Spikes [T, B, N] to their numbers over time [B, N]."""

    def forward(self, spikes: Tensor) -> Tensor:
        """Return how often each neuron fired."""
        return spikes.sum(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Recurrent:
    """What both share.

    Args:
        hidden: N, neurons.
        steps: pieces that an input is read in; 0 for the rows of an image, the values of a series.
        repeat: for how many time steps each piece is shown.

    Raises:
        UsageError: a number out of range.
    """

    hidden: int = 96
    steps: int = 0
    repeat: int = 1

    def __post_init__(self) -> None:
        require(self.hidden >= 1, f"hidden must be at least 1, got {self.hidden}.")
        require(self.steps >= 0, f"steps must be at least 1, or 0 for one row a step, got {self.steps}.")
        require(self.repeat >= 1, f"repeat must be at least 1, got {self.repeat}.")

    def build(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """Return the backbone [B, ...] -> [B, N] and N; UsageError where ``steps`` does not divide the inputs."""
        check_shape("a recurrent network", shape, image=False)
        pieces = InPieces(shape, self.steps, self.repeat)
        return nn.Sequential(
            OrderedDict(pieces=pieces, neurons=self.neurons(pieces.width), readout=self.readout())
        ), self.hidden

    def neurons(self, width: int) -> nn.Module:
        """Return the layer [T, B, width] -> [T, B, N]."""
        raise NotImplementedError

    def readout(self) -> nn.Module:
        """Return what makes features [B, N] of spikes [T, B, N]."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLIF(_Recurrent):
    """One layer of recurrent leaky integrate-and-fire neurons and a linear readout of how often each fired.

    Numbers of spikes rather than their means let small weights of the readout make confident logits, so that weights can be
    held within a tenth. Weights start as PyTorch draws them.

    Args:
        hidden: N, neurons.
        steps: pieces that an input is read in; 0 for the rows of an image, the values of a series.
        repeat: for how many time steps each piece is shown.
        leak, threshold, reset, surrogate: see :class:`stalwart.spiking.RecurrentLIF`; the leak is exp(-1/5) by default, and the
            surrogate a triangle of height 0.3: one of height 1 lets gradients explode over the steps and learns less.

    Raises:
        UsageError: a number out of range.
    """

    leak: Number = _LEAK
    threshold: Number = 1.0
    reset: str = "soft"
    surrogate: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "linear", "scale": 0.3})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.neurons(1)

    def neurons(self, width: int) -> nn.Module:
        """Return the layer [T, B, width] -> [T, B, N]."""
        return RecurrentLIF(width, self.hidden, self.leak, self.threshold, self.reset, find_surrogate(self.surrogate))

    def readout(self) -> nn.Module:
        """Return the numbers of spikes."""
        return Counts()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSNN(_Recurrent):
    """One layer of recurrent neurons with adaptive thresholds and a readout of their rates: mean_t(o) W_out + b_out.

    Weights start from normal distributions cut at two deviations, of variance 2 / (I + N) and 1 / N. The objective
    "spike-rates" holds rates near 10 Hz, as published.
    Source: Bellec et al., NeurIPS 2018; numbers and initial weights as in Büchel, Faber and Muir, ICLR 2022 (arXiv
    2106.05009), appendix and code.

    Args:
        hidden: N, neurons.
        steps: pieces that an input is read in; 0 for the rows of an image, the values of a series.
        repeat: for how many time steps each piece is shown.
        tau, tau_adaptation, threshold, beta, refractory, dt: see :class:`stalwart.spiking.AdaptiveLIF`.
        dampening: d, the height of the triangular derivative of a spike, positive.

    Raises:
        UsageError: a number out of range.
    """

    hidden: int = 256
    tau: Number = 20.0
    tau_adaptation: Number = 98.0
    threshold: Number = 0.01
    beta: Number = 2.0
    refractory: int = 2
    dt: Number = 1.0
    dampening: Number = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._layer(1, 1)

    def neurons(self, width: int) -> nn.Module:
        """Return the layer [T, B, width] -> [T, B, N]."""
        layer = self._layer(width, self.hidden)
        for weight, size in ((layer.input.weight, (width + self.hidden) / 2), (layer.recurrent.weight, self.hidden)):
            # What a normal distribution cut at two deviations keeps of its deviation.
            std = 1 / math.sqrt(size) / 0.87962566103423978
            nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std)
        return layer

    def readout(self) -> nn.Module:
        """Return the means over time."""
        return Rates()

    def _layer(self, width: int, units: int) -> AdaptiveLIF:
        return AdaptiveLIF(
            width,
            units,
            self.tau,
            self.tau_adaptation,
            self.threshold,
            self.beta,
            self.refractory,
            self.dt,
            Linear(self.dampening),
        )
