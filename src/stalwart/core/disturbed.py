"""How a device reaches into layers of neurons without either room knowing the other: what neurons ask, and what may answer.

A device model hangs a :class:`Disturbance` on a layer; the layer asks each of them for its numbers as the chip has them, one
for each neuron, and for noise on its membranes.
"""

from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Disturbance(Protocol):
    """What a device does to one layer of neurons."""

    def changed(self, name: str, value: Tensor) -> Tensor:
        """Return one number of each neuron as the chip has it, shaped like ``value``.

        Args:
            name: what it is: "threshold", "leak" (the share of a membrane that a step keeps), "leak_adaptation", or "bias", a
                current that flows in every step, in units of the threshold.
            value: as it was trained, of one sample's shape.
        """

    def membrane(self, like: Tensor) -> Tensor | None:
        """Return what is added to membranes shaped like ``like``, in units of the threshold, drawn anew; None for nothing."""


class Disturbed(nn.Module):
    """Base of layers of neurons, which device models can reach into.

    Attributes:
        disturbances: what a device does to the layer; nothing by default. It is no part of the network's state.
        disturbable: which numbers of its neurons a device can change, and "membrane" where it can add noise to them.
    """

    disturbable: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.disturbances: tuple[Disturbance, ...] = ()

    def on_chip(self, name: str, value: Tensor, neurons: torch.Size) -> Tensor:
        """Return a number of the layer's neurons as the device has it: ``value`` itself, or one for each of ``neurons``."""
        for one in self.disturbances:
            value = one.changed(name, value.expand(neurons))
        return value

    def membrane_noise(self, like: Tensor) -> Tensor | None:
        """Return the sum of all noise for membranes shaped like ``like``, in units of the threshold; None for none."""
        drawn = [noise for one in self.disturbances if (noise := one.membrane(like)) is not None]
        return sum(drawn[1:], drawn[0]) if drawn else None
