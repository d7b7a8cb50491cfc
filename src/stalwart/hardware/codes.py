"""Evenly spaced codes for the values of a tensor."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.core.numbers import require

MOST_BITS = 16


@dataclass(frozen=True)
class Codes:
    """Values as integers: value = low + step·code, with steps and lows that broadcast against the codes.

    Attributes:
        code: integers as int64, any shape.
        low: the value of code 0, float64.
        step: the distance of neighbours, float64; 0 where all values are the same.
    """

    code: Tensor
    low: Tensor
    step: Tensor

    def decode(self, like: Tensor) -> Tensor:
        """Return the values in the dtype of ``like``."""
        return (self.low + self.step * self.code).to(like.dtype)


def unsigned(values: Tensor, bits: int) -> Codes:
    """Return properly rounded codes 0 ... 2^bits - 1 from the smallest to the largest value of a tensor.

    Codes are found in float64, so that the error is at most half a step.

    Source: Stutz et al., "Bit error robustness for energy-efficient DNN accelerators", MLSys 2021, section 4.1.
    """
    wide = values.double()
    low, high = wide.min(), wide.max()
    step = (high - low) / (2**bits - 1)
    return Codes(_nearest(wide - low, step).clamp_(0, 2**bits - 1), low, step)


def signed(values: Tensor, bits: int, per_channel: bool) -> Codes:
    """Return codes ±(2^(bits-1) - 1) symmetric about 0, by one step a tensor or one for each row of its first dimension."""
    wide, most = values.double(), 2 ** (bits - 1) - 1
    size = wide.abs()
    largest = size.flatten(1).amax(1).reshape(-1, *[1] * (wide.dim() - 1)) if per_channel else size.max()
    step = largest / most
    return Codes(_nearest(wide, step).clamp_(-most, most), torch.zeros_like(step), step)


def unsigned_by_channel(values: Tensor, bits: int) -> Codes:
    """Return :func:`unsigned` codes with a range for each row of the first dimension."""
    wide = values.double()
    rows, column = wide.flatten(1), (-1, *[1] * (wide.dim() - 1))
    low, high = rows.amin(1).reshape(column), rows.amax(1).reshape(column)
    step = (high - low) / (2**bits - 1)
    return Codes(_nearest(wide - low, step).clamp_(0, 2**bits - 1), low, step)


def check_bits(bits: int, least: int, what: str) -> None:
    """Refuse numbers of bits that are too few or that codes do not have.

    Raises:
        UsageError: out of range.
    """
    require(least <= bits <= MOST_BITS, f"{what} has {least} to {MOST_BITS} bits, got {bits}.")


def _nearest(offset: Tensor, step: Tensor) -> Tensor:
    # Where all values are equal there is no step, and their one code is 0.
    return torch.where(step > 0, offset / step, 0.0).round_().long()
