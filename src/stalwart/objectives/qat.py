"""Quantisation-aware training: the network is trained as the chip will hold it and see it."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from stalwart.core.numbers import Number, require
from stalwart.hardware import ActivationQuantise, Mismatch, Quantise
from stalwart.hardware.names import chosen_parameters
from stalwart.objectives.base import Moment
from stalwart.objectives.moved import AtMovedWeights, Slopes


@dataclass(frozen=True, kw_only=True)
class QAT(AtMovedWeights):
    """The base loss with rounded weights and activations; gradients pass the rounding as if it were not there.

    Weights are those of :class:`stalwart.hardware.Quantise`, activations those of
    :class:`stalwart.hardware.ActivationQuantise` with the range of each vector or image, so that a network is trained on the
    very values that these devices give with the same options, and nothing is left to calibrate. Gradients do not pass what is
    clipped. A run hands on the weights before they are rounded, and so it validates them: with few bits set
    ``training.select: last``. Analog arrays do not round weights but program them with noise, in range: ``bits=None,
    noise=0.1``.
    Source: Jacob et al., CVPR 2018 (arXiv 1712.05877), section 3; noise and converters: Zhou et al., "AnalogNets", 2021
    (arXiv 2111.06503).

    Attributes:
        bits: of the weights, 2 to 16; None for weights that are not rounded.
        per: one range a "tensor", or a "channel".
        symmetric: whether weights are rounded about 0.
        noise: standard deviation of noise on the weights as a share of each tensor's largest |w|, drawn for each batch.
        activation_bits: of the converters before and behind linear and convolutional layers; None for none.
        at: the "dac", the "adc" or "both".
        clip: share of the range that the converters cover.
        only: glob patterns of the parameters that are rounded, as devices take them; weight matrices without one.
    """

    only: str | tuple[str, ...] = ()
    bits: int | None = 8
    per: Literal["tensor", "channel"] = "tensor"
    symmetric: bool = True
    noise: Number = 0.0
    activation_bits: int | None = 8
    at: Literal["dac", "adc", "both"] = "both"
    clip: Number = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.bits is not None or self.activation_bits is not None or self.noise > 0,
            "nothing is left to train for; give bits, activation_bits or noise.",
        )
        _ = self.faults, self.converters  # their own checks

    @property
    def faults(self) -> tuple[Quantise | Mismatch, ...]:
        """What the device does to weights, one after the other."""
        rounded = () if self.bits is None else (Quantise(self.bits, self.per, self.symmetric),)
        return (*rounded, Mismatch(self.noise, "range")) if self.noise else rounded

    @property
    def converters(self) -> ActivationQuantise | None:
        """What it does to activations."""
        return None if self.activation_bits is None else ActivationQuantise(self.activation_bits, self.clip, self.at)

    def chosen(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters that the device rounds, by name."""
        return chosen_parameters(model, self.only, biases=False)

    def move(
        self, weights: Mapping[str, Tensor], slopes: Slopes, generator: Callable[[str], torch.Generator]
    ) -> dict[str, Tensor]:
        """Return the weights as the device holds them."""
        moved, source = dict(weights), generator("qat")
        for fault in self.faults:
            moved = {name: fault.perturb(tensor, source) for name, tensor in moved.items()}
        return moved

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the base loss of the network on the device, crafted inputs included."""
        with contextlib.ExitStack() as stack:
            if self.converters is not None:
                for handle in self.converters.hook(model, torch.Generator()):
                    stack.callback(handle.remove)
            return super().loss(model, x, y, moment)
