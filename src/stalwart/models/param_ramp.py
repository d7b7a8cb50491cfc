"""ParamRamp: an activation that is flat, or nearly so, on both sides of a ramp whose length is trained.

Source: Lyu et al., "Towards evaluating and training verifiably robust neural networks", CVPR 2021 (arXiv 2104.00447),
section 4. A neuron of an interval-trained ReLU network is mostly dead below zero and passes no gradient; one that is dead
above its ramp still trains the ramp's length.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.core import jit
from stalwart.core.errors import InputError
from stalwart.core.hooks import removing
from stalwart.core.layout import as_stored, has_channels_last, has_no_gaps
from stalwart.core.modes import evaluating
from stalwart.core.numbers import Number, require
from stalwart.core.random import normal

_SHORTEST = 1e-4
_ENDLESS = 1e30
"""The length of a ramp that is switched off: finite, so that no product with it is NaN, and beyond any pre-activation."""


@torch.library.custom_op("stalwart::param_ramp", mutates_args=())
def param_ramp(z: Tensor, r: Tensor, eta: Tensor) -> Tensor:
    """Return eta z for z < 0, z for 0 <= z <= r, and eta z + (1 - eta) r for z > r.

    Args:
        z: pre-activations [B, ...].
        r: positive lengths [1, ...].
        eta: slope outside the ramp, a tensor of no dimensions in [0, 1); it gets no gradient.

    Raises:
        InputError: there is not one length a neuron.
    """
    _check(z, r)
    if _compiles(z):
        from stalwart.models import kernels

        out = torch.empty_like(z)
        jit.run(kernels.ramp, r.numel(), len(z), as_stored(z, z), as_stored(r.to(z), z), eta.to(z), as_stored(out, z))
        return out
    # eta z + (1 - eta) c with c = min(max(z, 0), r), in the form that gives z itself on the ramp.
    kept = z.clamp(z.new_zeros(()), r.to(z.dtype))
    return kept.lerp_(z, eta.to(z.dtype))


@param_ramp.register_fake
def _(z: Tensor, r: Tensor, eta: Tensor) -> Tensor:
    _check(z, r)
    return torch.empty_like(z)


def _check(z: Tensor, r: Tensor) -> None:
    if r.shape != (1, *z.shape[1:]):
        raise InputError(
            f"a ParamRamp with lengths of shape {list(r.shape)} cannot take pre-activations of shape {list(z.shape)}; build "
            "the model for inputs of this shape."
        )


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    z, r, eta = ctx.saved_tensors
    if _compiles(z) and not torch.is_grad_enabled():
        from stalwart.models import kernels

        out, total = torch.empty_like(z), torch.zeros_like(as_stored(r.to(z), z))
        inputs = as_stored(z, z), as_stored(r.to(z), z), eta.to(z), as_stored(gradient, z)
        jit.run(kernels.ramp_backward, r.numel(), len(z), *inputs, as_stored(out, z), total)
        return out, total.permute(0, 3, 1, 2) if has_channels_last(z) else total, None
    eta = eta.to(z.dtype)
    # threshold_backward(g, v, 0) is g where v > 0, else 0: four times as fast on the CPU as a comparison and a choice.
    above = torch.ops.aten.threshold_backward(gradient, z - r.to(z.dtype), 0)
    inside = torch.ops.aten.threshold_backward(gradient, z, 0).sub_(above)
    return inside.lerp_(gradient, eta), above.sum(0, keepdim=True) * (1 - eta), None


def _compiles(z: Tensor) -> bool:
    """Tell whether the compiled loops take z: they need numba, and 32-bit floats without gaps in the CPU's memory."""
    return has_no_gaps(z) and jit.reads(z)


param_ramp.register_autograd(_backward, setup_context=_keep)


class ParamRamp(nn.Module):
    """a = eta z (z < 0), z (0 <= z <= r), eta z + (1 - eta) r (z > r), with one trained r >= 1e-4 a neuron.

    Until it is switched on it is leaky ReLU of slope ``eta`` (:func:`initialise_ramps` measures r and switches on). Change
    ``eta`` with :func:`set_slope`; a traced graph reads it live.

    Args:
        shape: the shape of one sample's pre-activations, without the batch; r has shape [1, *shape].
        eta: slope outside the ramp, in [0, 1).
        noise: standard deviation, relative to the mean of r, of what :func:`jittered` adds to r while training.

    Raises:
        UsageError: a slope or a noise out of range.
    """

    r: nn.Parameter
    eta: Tensor
    on: Tensor
    jitter: Tensor

    def __init__(self, shape: Sequence[int], eta: Number = 0.0, noise: Number = 0.01) -> None:
        super().__init__()
        require(0 <= eta < 1, f"eta, the slope outside the ramp, must be in [0, 1), got {eta}.")
        require(noise >= 0, f"the noise of a ramp's length must be at least 0, got {noise}.")
        self.noise = float(noise)
        self.r = nn.Parameter(torch.ones(1, *shape))
        self.register_buffer("eta", torch.tensor(float(eta)))
        self.register_buffer("on", torch.tensor(False))
        self.register_buffer("jitter", torch.zeros(1, *shape), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """Map pre-activations [B, *shape] to activations of the same shape."""
        return param_ramp(z, self.length, self.eta)

    @property
    def length(self) -> Tensor:
        """The r in use, [1, *shape]: at least 1e-4, with the noise of this step; endless while switched off."""
        # Both branches are computed so that r is part of the loss, with gradient 0, before it is switched on, too.
        return torch.where(self.on, (self.r + self.jitter).clamp_min(_SHORTEST), _ENDLESS)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows: the shape alone, for all else changes while training."""
        return str(tuple(self.r.shape[1:]))


def ramps(model: nn.Module) -> dict[str, ParamRamp]:
    """Return the model's ParamRamps by module path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, ParamRamp)}


def initialise_ramps(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set each r to its neuron's mean activation over the inputs, but at least 1e-4, and switch all ramps on.

    The mean is that of the activations as they are now, leaky ReLU's before the switch, in evaluation mode.
    Source: Lyu et al., CVPR 2021, section 4; the authors' configurations count negative activations too.

    Args:
        model: any module; its mode is as before afterwards.
        batches: inputs [B, ...], all of the training set without augmentation.

    Raises:
        UsageError: there are no inputs.
    """
    found = ramps(model)
    totals = {path: torch.zeros_like(ramp.r, dtype=torch.float64) for path, ramp in found.items()}

    def hook(path: str) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
            totals[path] += out.sum(0, keepdim=True, dtype=torch.float64)

        return add

    hooks = [ramp.register_forward_hook(hook(path)) for path, ramp in found.items()]
    count = 0
    with removing(hooks), evaluating(model), torch.no_grad():
        for x in batches:
            model(x)
            count += len(x)
    require(count > 0, "the lengths of ramps are mean activations, but there are no inputs to take them over.")
    with torch.no_grad():
        for path, ramp in found.items():
            ramp.r.copy_((totals[path] / count).clamp_min(_SHORTEST))
            ramp.on.fill_(True)


def set_slope(model: nn.Module, eta: Number) -> None:
    """Set the slope of every ParamRamp, in [0, 1); no graph has to be traced again."""
    require(0 <= eta < 1, f"eta, the slope outside the ramp, must be in [0, 1), got {eta}.")
    for ramp in ramps(model).values():
        ramp.eta.fill_(eta)


def lengthen(model: nn.Module) -> None:
    """Raise every r below 1e-4 to it, after a step of the optimiser: there the forward pass would give it no gradient."""
    with torch.no_grad():
        for ramp in ramps(model).values():
            ramp.r.clamp_(min=_SHORTEST)


@contextlib.contextmanager
def jittered(model: nn.Module, source: torch.Generator) -> Iterator[None]:
    """Add N(0, noise mean(r)) to every r inside the block: one draw, the same for all passes, never part of r itself.

    Without it r overfits. Source: Lyu et al., CVPR 2021, section 5, with the strength of the authors' code.

    Args:
        model: any module; without ParamRamps this does nothing.
        source: the generator to draw from, on the model's device. All data-parallel processes draw the same.
    """
    found = ramps(model).values()
    try:
        for ramp in found:
            draw = normal(ramp.r.shape, source, ramp.r.detach(), batch_axis=None)
            ramp.jitter.copy_(draw * (ramp.noise * ramp.r.detach().mean()))
        yield
    finally:
        for ramp in found:
            ramp.jitter.zero_()
