"""Leaky integrate-and-fire neurons over all time steps, as one operator with a hand-written backward pass."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stalwart.core import jit
from stalwart.core.buffers import empty
from stalwart.core.errors import InputError
from stalwart.core.numbers import Number, require
from stalwart.spiking import reference
from stalwart.spiking.modes import BACKWARDS, mode_gradient
from stalwart.spiking.reference import ORDERS, RESETS, Dynamics
from stalwart.spiking.surrogates import Surrogate, find_surrogate


def lif(
    currents: Tensor,
    leak: Tensor | Number = 0.5,
    threshold: Tensor | Number = 1.0,
    reset: str = "soft",
    surrogate: Surrogate | str | Mapping[str, Any] = "atan",
    order: str = "integrate_first",
    detach_reset: bool = True,
    backward: str = "bptt",
    pool: bool = False,
) -> Tensor:
    """Return the spikes [T, B, ...] of leaky integrate-and-fire neurons; the state starts at 0 and is gone afterwards.

        u = leak * v + x;  s = 1[u >= threshold];  v = u - threshold * s

    and the other dynamics of :mod:`stalwart.spiking.reference`. Nothing but the currents is kept for the backward pass.

    Args:
        currents: [T, B, ...]. Currents that are ``expand``ed over time, as of a constant input, are not copied.
        leak: λ in [0, 1]; 1 integrates and fires. A number, or a tensor that broadcasts against one sample [...].
        threshold: θ > 0, likewise.
        reset: "soft" subtracts the threshold, "hard" sets the membrane to 0, "none" leaves it.
        surrogate: the derivative of a spike, see :mod:`stalwart.spiking.surrogates`.
        order: "fire_first" decides a spike by the membrane before this step's current, with a strict comparison.
        detach_reset: whether gradients ignore the reset.
        backward: which gradient of the same forward pass, see :mod:`stalwart.spiking.modes`.
        pool: whether to return 2 x 2 average-pooled spikes [T, B, C, H / 2, W / 2] of currents [T, B, C, H, W]. Where channels
            lie last in memory the spikes themselves are never written.

    Raises:
        InputError: no time step, or leaks and thresholds that do not fit the currents; nothing to pool.
        UsageError: an unknown reset, order, surrogate or mode; a leak or threshold out of range.

    Example:
        >>> lif(torch.full((3, 1), 0.75), leak=1.0)
        tensor([[0.],
                [1.],
                [1.]])
    """
    require(reset in RESETS, f"unknown reset '{reset}'; known: {', '.join(RESETS)}.")
    require(order in ORDERS, f"unknown order '{order}'; known: {', '.join(ORDERS)}.")
    require(backward in BACKWARDS, f"unknown backward mode '{backward}'; known: {', '.join(BACKWARDS)}.")
    if currents.dim() < 2 or not len(currents):
        raise InputError(f"neurons take currents [T, B, ...] of at least one time step, got {list(currents.shape)}.")
    if not currents.is_floating_point():
        raise InputError(f"neurons take floating-point currents, got {currents.dtype}.")
    if pool and (currents.dim() != 5 or currents.shape[3] < 2 or currents.shape[4] < 2):
        raise InputError(f"neurons pool currents [T, B, C, H, W] of at least 2 x 2, got {list(currents.shape)}.")
    leaks, thresholds = (_fitting(what, one, currents) for what, one in (("leak", leak), ("threshold", threshold)))
    found = find_surrogate(surrogate)
    if pool and not (backward == "bptt" and _pools(currents)):
        spikes = lif(currents, leaks, thresholds, reset, found, order, detach_reset, backward)
        return torch.nn.functional.avg_pool2d(spikes.flatten(0, 1), 2).unflatten(0, spikes.shape[:2])
    if backward == "bptt" and found.code >= 0:
        a, b = found.numbers()
        out: Tensor = torch.ops.stalwart.lif(
            currents, leaks, thresholds, RESETS.index(reset), ORDERS.index(order), detach_reset, found.code, a, b, pool
        )
        return out
    how = Dynamics(reset, order, detach_reset)
    plain: Tensor = _Plain.apply(currents, leaks, thresholds, how, found, backward)
    return plain


def _fitting(what: str, value: Tensor | Number, currents: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        require(what != "leak" or 0 <= value <= 1, f"the leak of neurons must lie in [0, 1], got {value}.")
        require(what != "threshold" or value > 0, f"the threshold of neurons must be positive, got {value}.")
        return torch.tensor(float(value), dtype=currents.dtype, device=currents.device)
    try:
        fits = torch.broadcast_shapes(value.shape, currents.shape[2:]) == currents.shape[2:]
    except RuntimeError:
        fits = False
    if not fits:
        raise InputError(
            f"a {what} of shape {list(value.shape)} does not fit neurons of shape {list(currents.shape[2:])}; give one a "
            "layer, a channel (such as [C, 1, 1]) or a neuron."
        )
    return value


@torch.library.custom_op("stalwart::lif", mutates_args=())
def _lif(
    currents: Tensor,
    leak: Tensor,
    threshold: Tensor,
    reset: int,
    order: int,
    detach_reset: bool,
    kind: int,
    a: float,
    b: float,
    pool: bool,
) -> Tensor:
    if not compiles(currents):
        how = Dynamics(RESETS[reset], ORDERS[order], detach_reset)
        return reference.run(currents, leak.to(currents), threshold.to(currents), how)[0]
    from stalwart.spiking import kernels

    x, last, rows, sizes, items = _laid_out(currents, leak, threshold, pool)
    shape = (x.shape[1], currents.shape[3] // 2, currents.shape[4] // 2, currents.shape[2]) if pool else x.shape[1:]
    out = empty((len(currents), *shape), x)
    jit.run(kernels.forward, items, *sizes, order, reset, rows[0].numel(), x, *rows, out)
    return out.movedim(-1, 2) if last else out


@_lif.register_fake
def _(
    currents: Tensor,
    leak: Tensor,
    threshold: Tensor,
    reset: int,
    order: int,
    detach_reset: bool,
    kind: int,
    a: float,
    b: float,
    pool: bool,
) -> Tensor:
    if not pool:
        return torch.empty_like(currents)
    height, width = currents.shape[3] // 2, currents.shape[4] // 2
    return currents.new_empty(*currents.shape[:2], height, width, currents.shape[2]).movedim(-1, 2)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    currents, leak, threshold, *ctx.numbers = inputs
    ctx.save_for_backward(currents, leak, threshold)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "spiking neurons have no second derivative; do not ask for create_graph through them."
        )
    currents, leak, threshold = ctx.saved_tensors
    reset, order, detach_reset, kind, a, b, pool = ctx.numbers
    learns = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
    if not compiles(currents):
        how = Dynamics(RESETS[reset], ORDERS[order], detach_reset)
        lk, th = leak.to(currents), threshold.to(currents)
        spikes, u = reference.run(currents, lk, th, how)
        slopes = _slope_of(kind, a, b, u / th - 1) / th
        of_currents, of_leak, of_threshold = reference.pull(gradient, slopes, spikes, u, lk, th, how)
    else:
        from stalwart.spiking import kernels

        x, last, rows, sizes, items = _laid_out(currents, leak, threshold, pool)
        steps = len(currents)
        g = (gradient.movedim(2, -1) if last else gradient).contiguous()
        out = empty(tuple(x.shape), x)
        sums = [x.new_empty(x.shape[1:] if learns else 0) for _ in range(2)]
        numbers = torch.tensor([a, b], dtype=x.dtype)
        flags = (order, reset, kind, not detach_reset, learns, rows[0].numel())
        jit.run(kernels.backward, items, *sizes, *flags, x, *rows, g, out, *sums, numbers)
        of_currents = out.movedim(-1, 2) if last else out
        if len(out) < steps:
            # Autograd sums over the expanded axis: put the sum in one step, zeros elsewhere would be as long as a copy.
            of_currents = of_currents.expand(steps, *of_currents.shape[1:]) / steps
        of_leak, of_threshold = (one.movedim(-1, 1) if learns and last else one for one in sums)
    return (
        of_currents,
        of_leak.sum_to_size(leak.shape).to(leak) if ctx.needs_input_grad[1] else None,
        of_threshold.sum_to_size(threshold.shape).to(threshold) if ctx.needs_input_grad[2] else None,
        *[None] * 7,
    )


_lif.register_autograd(_backward, setup_context=_keep)


def compiles(currents: Tensor) -> bool:
    """Tell whether the compiled loops take these currents: they need numba, and 32- or 64-bit floats on the CPU."""
    kinds = (torch.float32, torch.float64)
    return currents.device.type == "cpu" and currents.dtype in kinds and currents.numel() > 0 and jit.available()


def _packed(currents: Tensor) -> tuple[Tensor, bool]:
    """Return currents [T', B, ...] without gaps, T' = 1 where time is expanded, and whether channels come last."""
    x = currents[:1] if len(currents) > 1 and currents.stride(0) == 0 else currents
    if x.dim() > 3 and not x.is_contiguous():
        turned = x.movedim(2, -1)
        if turned.is_contiguous():
            return turned, True
    return x.contiguous(), False


def _pools(currents: Tensor) -> bool:
    """Tell whether the compiled loops can pool: whole windows, channels last, runs long enough for vectors."""
    whole = currents.shape[3] % 2 == 0 and currents.shape[4] % 2 == 0
    return whole and currents.shape[2] >= 8 and compiles(currents) and _packed(currents)[1]


def _laid_out(
    currents: Tensor, leak: Tensor, threshold: Tensor, pool: bool
) -> tuple[Tensor, bool, list[Tensor], tuple[int, ...], int]:
    """Return what both loops take: currents without gaps, whether channels are last, leaks and thresholds, sizes, blocks.

    Leaks and thresholds are one a neuron, or one each if that is all there is; then the neurons of all samples count as one
    sample, unless they are pooled: blocks are full however small a layer is.
    """
    from stalwart.spiking import kernels

    x, last = _packed(currents)
    samples, size = currents.shape[1], currents[0, 0].numel()
    image = (currents.shape[3], currents.shape[4], currents.shape[2]) if pool else (0, 0, 0)
    rows = [one.detach().to(currents) for one in (leak, threshold)]
    if all(one.numel() == 1 for one in rows):
        rows = [one.reshape(1) for one in rows]
        if not pool:
            samples, size = 1, samples * size
    else:
        full = [one.expand(currents.shape[2:]) for one in rows]
        rows = [(one.movedim(0, -1) if last else one).contiguous() for one in full]
    sizes = (x.dtype == torch.float64, len(x), len(currents), samples * size, size, *image)
    return x, last, rows, sizes, kernels.blocks(samples, size, image)


def _slope_of(kind: int, a: float, b: float, z: Tensor) -> Tensor:
    if kind == 0:
        return a * (b - z.abs()).clamp_min(0)
    if kind == 1:
        return a * (-b * z.abs()).exp()
    if kind == 2:
        return a * (z.abs() < b).to(z)
    if kind == 3:
        return a / (1 + (b * z).square())
    if kind == 4:
        return a / (1 + b * z.abs()).square()
    if kind == 5:
        return a * (-b * z.square()).exp()
    return torch.full_like(z, a)


class _Plain(torch.autograd.Function):
    """The same neurons with a gradient that the compiled loops do not know."""

    @staticmethod
    def forward(
        ctx: Any, currents: Tensor, leak: Tensor, threshold: Tensor, how: Dynamics, surrogate: Surrogate, mode: str
    ) -> Tensor:
        ctx.save_for_backward(currents, leak, threshold)
        ctx.how, ctx.surrogate, ctx.mode = how, surrogate, mode
        if compiles(currents):
            reset, order = RESETS.index(how.reset), ORDERS.index(how.order)
            spikes: Tensor = torch.ops.stalwart.lif(currents, leak, threshold, reset, order, True, 0, 1.0, 1.0, False)
            return spikes
        return reference.run(currents, leak.to(currents), threshold.to(currents), how)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        currents, leak, threshold = ctx.saved_tensors
        lk, th = leak.to(currents), threshold.to(currents)
        spikes, u = reference.run(currents, lk, th, ctx.how)
        slopes = ctx.surrogate.slope(u / th - 1) / th
        if ctx.mode != "bptt":
            return mode_gradient(ctx.mode, gradients[0], currents, slopes, spikes, lk, th), *[None] * 5
        of_currents, of_leak, of_threshold = reference.pull(gradients[0], slopes, spikes, u, lk, th, ctx.how)
        return (
            of_currents,
            of_leak.sum_to_size(leak.shape) if ctx.needs_input_grad[1] else None,
            of_threshold.sum_to_size(threshold.shape) if ctx.needs_input_grad[2] else None,
            *[None] * 3,
        )
