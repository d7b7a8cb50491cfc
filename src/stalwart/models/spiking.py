"""Any architecture with neurons in the place of its ReLUs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stalwart.core.numbers import Number, require
from stalwart.core.registry import lookup
from stalwart.spiking import LIF, NEURONS, Neurons, SpikingNetwork, find_surrogate, make_encoder, with_neurons


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spiking:
    """How a backbone becomes a spiking one; its features are firing rates.

    Attributes:
        steps: T, time steps for one input.
        encoder: a name of :data:`stalwart.spiking.ENCODERS` with its options, ``{"name": "poisson", "signed": true}``; with
            ``bits`` inputs are quantised before.
        neuron: a name of :data:`stalwart.spiking.NEURONS`, and the options of neurons other than "lif":
            ``{"name": "rate", "height": 2.0}``; "hoyer" needs one time step.
        leak, threshold, reset, order, detach_reset, surrogate, trained: of neurons "lif", see :class:`stalwart.spiking.LIF`.
        gain: weights start as N(0, 2 gain² / fan_in); He's initialisation leaves deep layers of spikes silent.
        xi: of the recipe's ``init: fluctuation`` instead, see :func:`stalwart.spiking.fluctuation_init`.

    Raises:
        UsageError: an unknown encoder, option or surrogate, or a number out of range.
    """

    steps: int = 4
    encoder: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "direct"})
    neuron: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "lif"})
    leak: Number = 0.9
    threshold: Number = 1.0
    reset: str = "soft"
    order: str = "integrate_first"
    detach_reset: bool = True
    surrogate: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "triangle"})
    trained: tuple[str, ...] = ()
    gain: Number = 1.6
    xi: Number = 1.0

    def __post_init__(self) -> None:
        require(self.gain > 0, f"gain must be positive, got {self.gain}.")
        require(self.xi > 0, f"xi must be positive, got {self.xi}.")
        make_encoder(self.encoder, self.steps)
        self._neurons("")

    def seen(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of what the backbone sees at one step of inputs of ``shape``.

        Raises:
            UsageError: frames of events that are not one a step.
        """
        if self.encoder.get("name") != "events":
            return shape
        require(
            len(shape) == 4 and shape[0] == self.steps,
            f"the encoder 'events' takes inputs of {self.steps} frames, [{self.steps}, C, H, W], but the data's are "
            f"{list(shape)}; give the model's steps and those of the dataset the same number.",
        )
        return shape[1:]

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Return the spiking backbone [B, ...] -> [B, D] with fresh weights, drawn from torch's generator.

        Raises:
            InputError: the backbone has no ReLU modules.
        """
        layers = with_neurons(backbone, self.steps, self._neurons)
        for module in layers.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                with torch.no_grad():
                    module.weight.mul_(self.gain)
        return SpikingNetwork(make_encoder(self.encoder, self.steps), layers, self.steps)

    def _neurons(self, path: str) -> Neurons:
        options = dict(self.neuron)
        name = str(options.pop("name", ""))
        kind = lookup("neuron", NEURONS, name)
        if name == "lif":
            require(
                not options, f"the options of neurons 'lif' stand beside 'neuron', not in it: {', '.join(options)}."
            )
            return LIF(
                self.leak,
                self.threshold,
                trained=self.trained,
                reset=self.reset,
                order=self.order,
                detach_reset=self.detach_reset,
                surrogate=find_surrogate(self.surrogate),
            )
        require(
            name != "hoyer" or self.steps == 1,
            f"neurons 'hoyer' work in one time step; set steps to 1, not {self.steps}.",
        )
        try:
            made: Neurons = kind(**options)
        except TypeError as problem:
            require(False, f"neuron '{name}': {problem}.")
            raise
        return made
