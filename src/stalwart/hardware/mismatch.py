"""Mismatch: every device differs a little from its design, for good."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stalwart.core.numbers import Number
from stalwart.core.random import normal
from stalwart.hardware.base import Fault, check_share, percent


@dataclass(frozen=True)
class Mismatch(Fault):
    """Random deviations of parameters, with R ~ N(0, 1):

        gaussian:    θ' = θ + level·|θ|·R
        range:       θ' = θ + level·max|θ|·R     the maximum over the tensor
        log-normal:  θ' = θ·exp(level·R)         keeps signs and medians: for thresholds, leaks, time constants

    ``level`` is a standard deviation, not a bound: |R| > 1 for 32 % of the parameters. Where the level is relative to each
    parameter, a zero stays a zero.

    Args:
        level: share in [0, 1]; 0.1 for 10 %.
        mode: which of the three.
        fresh: drawn anew at each forward pass (noise of reading) rather than once for each chip (mismatch).
        only: see :class:`Fault`; weight matrices and their biases by default.

    Raises:
        UsageError: a level out of range.

    Source: Büchel, Faber, Muir, "Network insensitivity to parameter noise via adversarial regularization", ICLR 2022,
    equation 1; range: Joshi et al., "Accurate deep neural network inference using computational phase-change memory",
    2020.
    """

    level: Number
    mode: Literal["gaussian", "range", "log-normal"] = "gaussian"
    fresh: bool = False

    def __post_init__(self) -> None:
        check_share(self.level, "the level of a mismatch")

    @property
    def stage(self) -> str:
        """Programming, or the read."""
        return "read" if self.fresh else "program"

    @property
    def must_change(self) -> bool:
        """Any positive level changes every parameter but zeros."""
        return self.level > 0

    def perturb(self, tensor: Tensor, source: torch.Generator) -> Tensor:
        """Return the tensor with one draw of deviations."""
        draw = normal(tensor.shape, source, tensor, batch_axis=None).mul_(self.level)
        if self.mode == "log-normal":
            return draw.exp_().mul_(tensor)
        if self.mode == "range" and tensor.numel():
            return draw.mul_(tensor.abs().max()).add_(tensor)
        return draw.mul_(tensor.abs()).add_(tensor)

    def describe(self) -> str:
        """Return the level with its unit."""
        of = {"gaussian": "|θ| (gaussian)", "range": "max|θ| of each tensor", "log-normal": "ln θ (log-normal)"}
        when = ", drawn at each forward pass" if self.fresh else ""
        # A deviation of the logarithm is a pure number.
        level = f"{self.level:.4g} in" if self.mode == "log-normal" else f"{percent(self.level)} of"
        return f"mismatch of standard deviation {level} {of[self.mode]}, {self._where()}{when}"
