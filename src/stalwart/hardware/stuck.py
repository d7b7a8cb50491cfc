"""Cells that hold one value whatever is written to them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stalwart.core.errors import InputError
from stalwart.core.numbers import Number
from stalwart.core.random import uniform
from stalwart.hardware.base import Fault, check_share, percent


@dataclass(frozen=True)
class StuckAt(Fault):
    """A share of cells, rows or columns stuck at one value.

    Each chip draws u ~ U[0, 1) once for each of them, and those with u < share are stuck: more faults include fewer.

    Args:
        share: in [0, 1], of cells, or of rows or columns.
        at: "zero"; or "min" or "max", the smallest or largest weight of the tensor.
        whole: what fails together: a "cell"; a "row", all weights of one output (first dimension); a "column", all of one input
            (second dimension).
        only: see :class:`Fault`; weight matrices by default, since biases have no cells of their own.

    Raises:
        UsageError: a share out of range.
        InputError: rows or columns of a tensor with fewer than two dimensions.
    """

    share: Number
    at: Literal["zero", "min", "max"] = "zero"
    whole: Literal["cell", "row", "column"] = "cell"
    biases: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share(self.share, f"the share of stuck {self.whole}s")

    @property
    def stage(self) -> str:
        """Programming."""
        return "program"

    def perturb(self, tensor: Tensor, source: torch.Generator) -> Tensor:
        """Return the tensor with stuck cells."""
        if not tensor.numel():
            return tensor
        shape = tensor.shape
        if self.whole != "cell":
            if tensor.dim() < 2:
                raise InputError(
                    f"a tensor of shape {list(shape)} has no {self.whole}s; use whole='cell', or choose matrices with only=."
                )
            axis = 0 if self.whole == "row" else 1
            shape = torch.Size(size if place == axis else 1 for place, size in enumerate(shape))
        stuck = uniform(shape, source, tensor, batch_axis=None) < self.share
        value = {"zero": tensor.new_zeros(()), "min": tensor.min(), "max": tensor.max()}[self.at]
        return torch.where(stuck, value, tensor)

    def describe(self) -> str:
        """Return the share with its unit."""
        at = "0" if self.at == "zero" else f"the {self.at} of their tensor"
        return f"{percent(self.share)} of the {self.whole}s stuck at {at}, {self._where()}"
