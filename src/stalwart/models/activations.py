"""The activations an architecture can be built with."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from torch import nn

from stalwart.core.numbers import Number, require
from stalwart.models.param_ramp import ParamRamp

Activation = Callable[[tuple[int, ...]], nn.Module]
"""From the shape of one sample's pre-activations to the module."""


def relu(shape: tuple[int, ...]) -> nn.Module:
    """Return a ReLU."""
    return nn.ReLU()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activated:
    """What architectures with a choice of activation share.

    Args:
        activation: "relu", "leaky-relu" or "param-ramp" (see :class:`stalwart.models.param_ramp.ParamRamp`).
        eta: slope below zero, and beyond the ramp, in [0, 1); by default 0.01 for leaky ReLU and 0 for ParamRamp.

    Raises:
        UsageError: a slope out of range, or one for ReLU, which has none.
    """

    activation: Literal["relu", "leaky-relu", "param-ramp"] = "relu"
    eta: Number | None = None

    def __post_init__(self) -> None:
        require(
            self.eta is None or self.activation != "relu",
            "eta is the slope of 'leaky-relu' and 'param-ramp'; the activation 'relu' has none.",
        )
        require(self.eta is None or 0 <= self.eta < 1, f"eta must be in [0, 1), got {self.eta}.")

    def activate(self, shape: tuple[int, ...]) -> nn.Module:
        """Return the activation for pre-activations of this shape."""
        if self.activation == "relu":
            return relu(shape)
        if self.activation == "leaky-relu":
            return nn.LeakyReLU(0.01 if self.eta is None else self.eta)
        return ParamRamp(shape, self.eta or 0.0)
