"""Quantised weights, after training."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stalwart.hardware.base import Fault
from stalwart.hardware.codes import check_bits, signed, unsigned, unsigned_by_channel


@dataclass(frozen=True)
class Quantise(Fault):
    """Weights rounded to evenly spaced values, at most half a step away.

        symmetric:      step = max|W| / (2^(bits-1) - 1),      W' = step·round(W / step)
        not symmetric:  step = (max W - min W) / (2^bits - 1),  W' = min W + step·round((W - min W) / step)

    Args:
        bits: 2 to 16.
        per: one range a "tensor", or a "channel": each row of the first dimension, an output. Vectors have one range.
        symmetric: about 0, which is then a code, so that zero weights stay zero.
        only: see :class:`Fault`; weight matrices by default, since biases are added with more bits.

    Raises:
        UsageError: bits out of range.
    """

    bits: int
    per: Literal["tensor", "channel"] = "tensor"
    symmetric: bool = True
    biases: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_bits(self.bits, 2, "a quantised weight")

    @property
    def stage(self) -> str:
        """The first."""
        return "quantise"

    def perturb(self, tensor: Tensor, source: torch.Generator) -> Tensor:
        """Return the rounded tensor; nothing is drawn."""
        if not tensor.numel():
            return tensor
        by_channel = self.per == "channel" and tensor.dim() > 1
        if self.symmetric:
            codes = signed(tensor, self.bits, by_channel)
        else:
            codes = unsigned_by_channel(tensor, self.bits) if by_channel else unsigned(tensor, self.bits)
        return codes.decode(tensor)

    def describe(self) -> str:
        """Return the bits and the kind of ranges."""
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"quantised to {self.bits} bits, {kind}, one range a {self.per}, {self._where()}"
