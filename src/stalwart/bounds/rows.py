"""Lines of which every row of a walk has its own lower slopes, and how coefficients and gradients pass them in one go."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stalwart.bounds.interval import Interval
from stalwart.bounds.lines import Lines
from stalwart.bounds.patches import Patches, is_wide
from stalwart.bounds.rules.base import dot
from stalwart.core import jit

_MOMENTUM = 0.6
"""Adam's usual 0.9 needs almost twice as many steps for the same bounds: slopes run into their ends and must turn soon."""


@dataclass(frozen=True, eq=False)
class RowLines:
    """Lines of a convex hinge; where ``free``, row s of sample b has the lower line of slope ``slopes[b, s]`` through the kink.

    Of patches [B, S, h, w, C] every row is a sample of its own, because each sees another part of the image.

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

    @staticmethod
    def over(
        coefficients: Tensor | Patches,
        usual: Lines,
        free: Tensor,
        at: float,
        kink: float,
        ends: tuple[float, float],
    ) -> "RowLines":
        """Return lines for the rows of a walk that begin with the slopes of ``usual`` or the nearest between the ends.

        A line through the kink with a slope beyond its ends, as that of a constant one may be, would not be sound.
        """
        parts = [usual.lower_slope, usual.lower_intercept, usual.upper_slope, usual.upper_intercept, free]
        parts = [part.detach() for part in parts]
        if isinstance(coefficients, Patches):
            parts = [coefficients.seen(part.movedim(1, -1)).flatten(0, 1) for part in parts]
        else:
            parts = [part.expand(len(coefficients), *part.shape[1:]).contiguous() for part in parts]
        rows = 1 if isinstance(coefficients, Patches) else coefficients.shape[1]
        slopes = parts[0].unsqueeze(1).repeat(1, rows, *[1] * (parts[0].dim() - 1))
        return RowLines(Lines(*parts[:4]), parts[4], slopes.clamp_(*ends), at, kink)

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

        a = a.contiguous()
        batch, rows = a.shape[:2]
        fixed = (is_wide(a), rows, batch, a[0, 0].numel())
        shared = (a, slopes, *parts, torch.tensor(ends, dtype=a.dtype))
        out, sums = torch.empty_like(a), a.new_empty(batch, rows)
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


def box_minimum(coefficients: Tensor, centre: Tensor, reach: Tensor) -> Tensor:
    """Return the smallest value [B, S] of <coefficients, x> over a box for each sample, with gradients."""
    if compilable(coefficients, centre, reach) and not (centre.requires_grad or reach.requires_grad):
        found: Tensor = _Minimum.apply(coefficients, centre.contiguous(), reach.contiguous())
        return found
    return dot(coefficients, centre) - dot(coefficients.abs(), reach)


class _Minimum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, a: Tensor, centre: Tensor, reach: Tensor) -> Tensor:
        from stalwart.bounds import ascent_kernels as kernels

        a = a.contiguous()
        batch, rows = a.shape[:2]
        fixed = (is_wide(a), rows, batch, a[0, 0].numel())
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


@dataclass(frozen=True, eq=False)
class RowBox:
    """The box that rows of a walk end in, once for each sample, or for each row of patches."""

    centre: Tensor
    reach: Tensor

    @staticmethod
    def over(coefficients: Tensor | Patches, box: Interval) -> "RowBox":
        """Return what the rows see of a box."""
        if isinstance(coefficients, Patches):
            parts = (coefficients.seen(part.movedim(1, -1)).flatten(0, 1) for part in (box.centre, box.reach))
        else:
            parts = (part.expand(len(coefficients), *part.shape[1:]).contiguous() for part in (box.centre, box.reach))
        return RowBox(*parts)


@torch.no_grad()
def climb(
    value: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, rate: float, step: int, ends: tuple[float, float]
) -> None:
    """Take Adam's ``step``-th step up the gradient, in place, and stay between the ends (Kingma and Ba, 2015)."""
    first, second = 1 - _MOMENTUM**step, 1 - 0.999**step
    gradient = gradient.contiguous()
    if compilable(value, gradient) and value.is_contiguous():
        from stalwart.bounds import ascent_kernels as kernels

        entries = [rate / first, second**-0.5, *ends, 1e-8, _MOMENTUM, 1 - _MOMENTUM, 0.999, 0.001]
        numbers, size = torch.tensor(entries, dtype=value.dtype), value.numel()
        jit.run(kernels.climb, size, is_wide(value), size, value, gradient, mean, square, numbers)
        return
    mean.lerp_(gradient, 1 - _MOMENTUM)
    square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    value.addcdiv_(mean, square.div(second).sqrt_().add_(1e-8), value=rate / first).clamp_(*ends)
