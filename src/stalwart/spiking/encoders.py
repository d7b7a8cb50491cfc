"""Encoders: from inputs [B, ...] in [0, 1] to what a spiking network sees at each of T steps, [T, B, ...].

They are part of the model, so that attacks work on pixels. Those that draw noise are noise layers: fresh draws for each
sample and step, or none, or always the same, as :func:`stalwart.core.noise.noise` says.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.core.errors import InputError
from stalwart.core.noise import NoiseLayer
from stalwart.core.numbers import Number, require
from stalwart.core.random import normal, uniform
from stalwart.core.registry import lookup


def _check_steps(steps: int) -> None:
    whole = isinstance(steps, int) and not isinstance(steps, bool)
    require(whole and steps >= 1, f"an encoder needs at least 1 time step, got {steps!r}.")


class Direct(nn.Module):
    """The input itself at every step, as a view that takes no memory.

    Args:
        steps: T, at least 1.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        _check_steps(steps)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, ...] to [T, B, ...]."""
        return x.unsqueeze(0).expand(self.steps, *x.shape)

    def in_steps(self, x: Tensor) -> list[Tensor]:
        """Return the input of each step, [B, ...]."""
        return [x] * self.steps


class _Coin(torch.autograd.Function):
    """1 where a uniform number lies below p, with the gradient of p (Bengio et al., 2013)."""

    @staticmethod
    def forward(context: Any, p: Tensor, draw: Tensor) -> Tensor:
        return (draw < p).to(p)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class Poisson(NoiseLayer):
    """Rate coding: at each step y = sign(x̃) 1[U < r |x̃|] with x̃ = 2 x - 1 and fresh U ~ U(0, 1), so E y = r x̃.

    Unsigned, y = 1[U < r x]. The gradient of y is that of its mean (straight through). Without noise every step sees the
    mean. Source: Sharmin et al., ECCV 2020 (arXiv 2003.10399), code.

    Args:
        steps: T, at least 1.
        signed: whether pixels below 1/2 send negative spikes.
        rate: r in (0, 1].
    """

    def __init__(self, steps: int, signed: bool = True, rate: Number = 1.0) -> None:
        super().__init__()
        _check_steps(steps)
        require(0 < rate <= 1, f"the rate of Poisson coding must lie in (0, 1], got {rate}.")
        self.steps, self.signed, self.rate = steps, signed, float(rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, ...] in [0, 1] to spikes [T, B, ...] in {-1, 0, 1}, or {0, 1}."""
        mean = self._mean(x)
        repeated = mean.unsqueeze(0).expand(self.steps, *mean.shape)
        if self.mode == "off":
            return repeated
        draw = self._draws(x)
        if not self.signed:
            spikes: Tensor = _Coin.apply(repeated, draw)
            return spikes
        # Of E[sign(x̃) coin(|x̃|)] the straight-through gradient is sign(x̃)² = 1 times that of x̃, at 0 too.
        sign = torch.where(mean.detach() < 0, -1.0, 1.0).to(x)
        return sign * _Coin.apply(sign * repeated, draw)

    def in_steps(self, x: Tensor) -> list[Tensor]:
        """Return the input of each step, [B, ...]."""
        return [self._mean(x)] * self.steps if self.mode == "off" else list(self(x).unbind(0))

    def _mean(self, x: Tensor) -> Tensor:
        return self.rate * (2 * x - 1 if self.signed else x)

    def _draws(self, x: Tensor) -> Tensor:
        shape = (self.steps, 1 if self.mode == "fixed" else len(x), *x.shape[1:])
        # The batch is axis 1 here; data-parallel processes draw for the global batch.
        return uniform(shape, self.stream(x.device), x.detach(), batch_axis=None if self.mode == "fixed" else 1)


class Gaussian(NoiseLayer):
    """x + σ n with fresh n ~ N(0, I) at each step: randomised smoothing inside the network.

    Source: Wu et al., "RSC-SNN", 2024 (arXiv 2407.20099).

    Args:
        steps: T, at least 1.
        sigma: σ in data units, positive.
    """

    def __init__(self, steps: int, sigma: Number = 0.1) -> None:
        super().__init__()
        _check_steps(steps)
        require(sigma > 0, f"sigma must be positive, got {sigma}.")
        self.steps, self.sigma = steps, float(sigma)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, ...] to [T, B, ...]."""
        repeated = x.unsqueeze(0).expand(self.steps, *x.shape)
        if self.mode == "off":
            return repeated
        shape = (self.steps, 1 if self.mode == "fixed" else len(x), *x.shape[1:])
        axis = None if self.mode == "fixed" else 1
        return repeated + self.sigma * normal(shape, self.stream(x.device), x.detach(), batch_axis=axis)

    def in_steps(self, x: Tensor) -> list[Tensor]:
        """Return the input of each step, [B, ...]."""
        return [x] * self.steps if self.mode == "off" else list(self(x).unbind(0))


class _Place(torch.autograd.Function):
    """A single 1 at the given step; the gradient goes to the latency of each spike, earlier being more input."""

    @staticmethod
    def forward(context: Any, x: Tensor, steps: int) -> Tensor:
        when = ((1 - x) * (steps - 1)).round().long().clamp(0, steps - 1)
        context.save_for_backward(when)
        spikes = x.new_zeros(steps, *x.shape)
        return spikes.scatter_(0, when.unsqueeze(0), (x > 0).to(x).unsqueeze(0))

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (when,) = context.saved_tensors
        return gradients[0].gather(0, when.unsqueeze(0)).squeeze(0), None


class Latency(nn.Module):
    """One spike a pixel, at step round((1 - x) (T - 1)); a pixel of 0 sends none.

    The gradient of x is that of its spike, as if the spike were x itself (straight through).

    Args:
        steps: T, at least 1.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        _check_steps(steps)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, ...] in [0, 1] to spikes [T, B, ...]."""
        spikes: Tensor = _Place.apply(x, self.steps)
        return spikes


class EventFrames(nn.Module):
    """Frames of events [B, T, ...] as they are, time first.

    Args:
        steps: T, the number of frames.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        _check_steps(steps)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, ...] to [T, B, ...].

        Raises:
            InputError: another number of frames.
        """
        if x.dim() < 3 or x.shape[1] != self.steps:
            raise InputError(
                f"the model takes {self.steps} frames a sample, [B, {self.steps}, ...], got {list(x.shape)}."
            )
        return x.transpose(0, 1)

    def in_steps(self, x: Tensor) -> list[Tensor]:
        """Return the frame of each step, [B, ...]."""
        return [x.select(1, t) for t in range(self.steps)]


class _Round(torch.autograd.Function):
    """Rounding to whole numbers with the gradient of the identity (straight through)."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Quantised(nn.Module):
    """Inputs rounded to 2^bits levels of [0, 1], with the gradient of the identity, and then encoded.

    Args:
        encoder: what follows.
        bits: b >= 1.

    Source: Sharmin et al., ECCV 2020, section 4.
    """

    def __init__(self, encoder: nn.Module, bits: int) -> None:
        super().__init__()
        whole = isinstance(bits, int) and not isinstance(bits, bool)
        require(whole and 1 <= bits <= 16, f"inputs are quantised to 1 to 16 bits, got {bits!r}.")
        self.encoder, self.bits = encoder, bits

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, ...] in [0, 1] to [T, B, ...]."""
        levels = 2**self.bits - 1
        encoded: Tensor = self.encoder(_Round.apply(x * levels) / levels)
        return encoded


ENCODERS: dict[str, str] = {
    "direct": "stalwart.spiking.encoders:Direct",
    "poisson": "stalwart.spiking.encoders:Poisson",
    "gaussian": "stalwart.spiking.encoders:Gaussian",
    "latency": "stalwart.spiking.encoders:Latency",
    "events": "stalwart.spiking.encoders:EventFrames",
}


def make_encoder(wanted: str | Mapping[str, Any], steps: int) -> nn.Module:
    """Return an encoder by name.

    Args:
        wanted: a name of :data:`ENCODERS`, or one with options beside it: ``{"name": "poisson", "signed": False}``; with
            ``bits`` inputs are quantised before.
        steps: T.

    Raises:
        UsageError: an unknown encoder or option, or a number out of range.
    """
    options: dict[str, Any] = {"name": wanted} if isinstance(wanted, str) else dict(wanted)
    kind = lookup("encoder", ENCODERS, str(options.pop("name", "")))
    bits = options.pop("bits", None)
    try:
        made: nn.Module = kind(steps, **options)
    except TypeError as problem:
        require(False, f"encoder '{wanted['name'] if isinstance(wanted, Mapping) else wanted}': {problem}.")
        raise
    return made if bits is None else Quantised(made, bits)
