"""Lines of which every row of a walk has its own lower slopes, and how coefficients and gradients pass them in one go."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stalwart.bounds.interval import Interval
from stalwart.bounds.lines import Lines
from stalwart.core import jit


@dataclass(frozen=True, eq=False)
class RowLines:
    """Lines of a convex hinge; where ``free``, row s of sample b has the lower line of slope ``slopes[b, s]`` through the kink.

    Attributes:
        usual: the lines elsewhere, and the upper lines everywhere, [B, ...].
        free: where slopes are chosen [B, ...].
        slopes: [B, S, ...].
        at: the kink.
        kink: the function's value there.
    """

    usual: Lines
    free: Tensor
    slopes: Tensor
    at: float
    kink: float

    def passed(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Return what coefficients [B, S, ...] become, and what they add to the constants [B, S]."""
        one = self.usual
        parts = (self.free, one.lower_slope, one.lower_intercept, one.upper_slope, one.upper_intercept)
        if compilable(coefficients, self.slopes, *parts[1:]):
            out: tuple[Tensor, Tensor] = _Passing.apply(coefficients, self.slopes, parts, (self.at, self.kink))
            return out
        free = self.free.unsqueeze(1)
        slope = torch.where(free, self.slopes, one.lower_slope.unsqueeze(1))
        low = torch.where(free, self.kink - self.at * self.slopes, one.lower_intercept.unsqueeze(1))
        above, below = coefficients.clamp_min(0), coefficients.clamp_max(0)
        added = above * low + below * one.upper_intercept.unsqueeze(1)
        return above * slope + below * one.upper_slope.unsqueeze(1), added.flatten(2).sum(2)


def compilable(*tensors: Tensor) -> bool:
    """Tell whether compiled loops can take these tensors: on the CPU and floats of one type."""
    kind = tensors[0].dtype
    plain = all(one.device.type == "cpu" and one.dtype == kind for one in tensors)
    return plain and kind in (torch.float32, torch.float64) and tensors[0].numel() > 0 and jit.available()


class _Passing(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, a: Tensor, slopes: Tensor, parts: tuple[Tensor, ...], ends: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        from stalwart.bounds import ascent_kernels as kernels

        a, slopes = a.contiguous(), slopes.contiguous()
        batch, rows = a.shape[:2]
        free, *lines = (part.contiguous() for part in parts)
        size = a[0, 0].numel()
        fixed = (int(a.dtype == torch.float64), rows, batch, size)
        both = torch.tensor(ends, dtype=torch.float64)
        out, sums = torch.empty_like(a), a.new_empty(batch, rows)
        shared = (a, slopes, free, *lines, both)
        jit.run(kernels.pass_rows, batch * rows, *fixed, *shared, out, sums)
        context.shared, context.fixed = shared, fixed
        return out, sums

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from stalwart.bounds import ascent_kernels as kernels

        g, c = (one.contiguous() for one in gradients)
        a, slopes = context.shared[:2]
        da, ds = torch.empty_like(a), torch.empty_like(slopes)
        jit.run(kernels.pull_rows, a.shape[0] * a.shape[1], *context.fixed, *context.shared, g, c, da, ds)
        return da, ds, None, None


def box_minimum(coefficients: Tensor, box: Interval) -> Tensor:
    """Return the smallest value [B, S] of <coefficients, x> over a box of one or of B samples, with gradients."""
    found: Tensor = _Minimum.apply(coefficients, box.centre.contiguous(), box.reach.contiguous())
    return found


class _Minimum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, a: Tensor, centre: Tensor, reach: Tensor) -> Tensor:
        from stalwart.bounds import ascent_kernels as kernels

        a = a.contiguous()
        batch, rows = a.shape[:2]
        fixed = (int(a.dtype == torch.float64), rows, batch, a[0, 0].numel(), len(centre))
        sums = a.new_empty(batch, rows)
        jit.run(kernels.box, batch * rows, *fixed, a, centre, reach, sums)
        context.shared, context.fixed = (a, centre, reach), fixed
        return sums

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from stalwart.bounds import ascent_kernels as kernels

        a = context.shared[0]
        da = torch.empty_like(a)
        rows = a.shape[0] * a.shape[1]
        jit.run(kernels.pull_box, rows, *context.fixed, *context.shared, gradients[0].contiguous(), da)
        return da, None, None


def climb(
    value: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, rate: float, step: int, ends: tuple[float, float]
) -> None:
    """Take Adam's ``step``-th step up the gradient, in place, and stay between the ends."""
    first, second = 1 - 0.9**step, 1 - 0.999**step
    gradient = gradient.contiguous()
    if compilable(value, gradient) and value.is_contiguous():
        from stalwart.bounds import ascent_kernels as kernels

        numbers = torch.tensor([rate, first, second, *ends], dtype=torch.float64)
        size = value.numel()
        jit.run(kernels.climb, size, int(value.dtype == torch.float64), size, value, gradient, mean, square, numbers)
        return
    mean.lerp_(gradient, 0.1)
    square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    value.addcdiv_(mean, square.div(second).sqrt_().add_(1e-8), value=rate / first).clamp_(*ends)
