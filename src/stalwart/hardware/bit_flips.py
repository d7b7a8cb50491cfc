"""Bits that flip in the memory of the weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.core.numbers import Number, require
from stalwart.core.random import uniform
from stalwart.hardware.base import Fault, check_share, percent
from stalwart.hardware.codes import Codes, check_bits, unsigned


@dataclass(frozen=True)
class BitFlips(Fault):
    """Random bit errors in quantised weights.

    Each tensor is stored as unsigned codes from its smallest to its largest value, properly rounded, so the weights are
    quantised to ``bits`` too. Each chip draws u ~ U[0, 1) once for each bit, and the bit is flipped where u < rate: the
    flips at a lower rate are among those at a higher one, and no bit flips twice.

    Args:
        rate: the share of bits that flip, in [0, 1].
        bits: of each code, 1 to 16.
        position: flip only this bit of each code, 0 for the one of least weight; None for all.
        fresh: drawn anew at each forward pass (errors of reading) rather than once for each chip (bad cells).
        only: see :class:`Fault`; weight matrices and their biases by default.

    Raises:
        UsageError: a rate, bits or position out of range.

    Source: Stutz et al., "Bit error robustness for energy-efficient DNN accelerators", MLSys 2021, sections 3 and 4.1.
    """

    rate: Number
    bits: int = 8
    position: int | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        check_share(self.rate, "the rate of bit flips")
        check_bits(self.bits, 1, "a stored weight")
        require(
            self.position is None or 0 <= self.position < self.bits,
            f"the position of a bit is 0 to {self.bits - 1} for codes of {self.bits} bits, got {self.position}.",
        )

    @property
    def stage(self) -> str:
        """Programming, or the read."""
        return "read" if self.fresh else "program"

    def perturb(self, tensor: Tensor, source: torch.Generator) -> Tensor:
        """Return the tensor's codes with flipped bits, as values."""
        if not tensor.numel():
            return tensor
        codes = unsigned(tensor, self.bits)
        return Codes(codes.code ^ self.mask(tensor, source), codes.low, codes.step).decode(tensor)

    def mask(self, like: Tensor, source: torch.Generator) -> Tensor:
        """Return which bits flip, as int64 of the shape of ``like``: the same draw for every rate and position."""
        flips = torch.zeros(like.shape, dtype=torch.int64, device=like.device)
        single = torch.empty((), dtype=torch.float32, device=like.device)
        for bit in range(self.bits):
            hit = uniform(like.shape, source, single, batch_axis=None) < self.rate
            if self.position in (None, bit):
                flips |= hit.long() << bit
        return flips

    def describe(self) -> str:
        """Return the rate with its unit."""
        which = "bits" if self.position is None else f"bits at position {self.position} (0 is the lowest)"
        when = "at each forward pass" if self.fresh else "frozen in each chip"
        return f"{percent(self.rate)} of the {which} of {self.bits}-bit codes flipped, {when}, {self._where()}"
