"""A spike as a function of autograd: a step whose derivative is a surrogate, for neurons that are loops in plain PyTorch."""

from typing import Any

import torch
from torch import Tensor

from stalwart.spiking.surrogates import Surrogate


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, surrogate: Surrogate, strict: bool) -> Tensor:
        ctx.save_for_backward(z)
        ctx.surrogate = surrogate
        return (z > 0 if strict else z >= 0).to(z)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        return gradients[0] * ctx.surrogate.slope(z), None, None


def spike(z: Tensor, surrogate: Surrogate, strict: bool = False) -> Tensor:
    """Return 1 where z >= 0 (z > 0 if strict), else 0, with the surrogate's slope at z for a derivative."""
    out: Tensor = _Spike.apply(z, surrogate, strict)
    return out
