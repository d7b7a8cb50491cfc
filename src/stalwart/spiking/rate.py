"""Neurons that learn by their rates: spikes forward, the gradient of the map from mean current to mean output backward."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stalwart.core.numbers import Number, require
from stalwart.spiking.neurons import Neurons
from stalwart.spiking.spike import spike
from stalwart.spiking.surrogates import Surrogate, find_surrogate


def rate_map(mean: Tensor, height: Tensor | Number, tau: Number | None = None, dt: Number = 0.05) -> Tensor:
    """Return the mean output that a mean current settles to: clip(Ī, 0, V), or clip(Ī / τ, 0, V / dt) of leaky neurons.

    Args:
        mean: Ī, any shape.
        height: V, positive.
        tau: τ of leaky neurons; None for integrate-and-fire ones.
        dt: length of a step, in the units of τ.
    """
    high = torch.as_tensor(height, dtype=mean.dtype, device=mean.device) / (1.0 if tau is None else dt)
    return torch.minimum((mean if tau is None else mean / tau).clamp_min(0), high)


@dataclass(frozen=True)
class _Slopes:
    """Of a rate map: its slope inside, where it saturates in units of V, its derivative in V above, and whether 0 is inside."""

    inside: float
    widest: float
    of_height: float
    with_zero: bool


class _ByRate(torch.autograd.Function):
    """The spikes as they are, the gradient of :func:`rate_map`; weights w [T] of the means sum to 1."""

    @staticmethod
    def forward(ctx: Any, currents: Tensor, height: Tensor, out: Tensor, weights: Tensor, slopes: _Slopes) -> Tensor:
        ctx.save_for_backward(currents, height, weights)
        ctx.slopes = slopes
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        currents, height, weights = ctx.saved_tensors
        slopes: _Slopes = ctx.slopes
        column = weights.reshape(-1, *[1] * (currents.dim() - 1))
        mean = (column * currents).sum(0)
        # All outputs of a neuron rise and fall with its mean: what one does to the loss, all do together.
        g = gradients[0].sum(0)
        above = mean > slopes.widest * height
        inside = (mean >= 0 if slopes.with_zero else mean > 0) & ~above
        of_height = (g * above * slopes.of_height).sum().reshape(height.shape)
        return column * (g * inside * slopes.inside), of_height, None, None, None


class RateNeuron(Neurons):
    """Neurons trained by differentiation on spike representation, currents [T, B, ...] to outputs in {0, V} or {0, V / dt}.

        integrate and fire:  u ← u + I;                o = V 1[u >= a V];         u ← u - o
        leaky:               u ← β u + (1 - β) I;      o = (V / dt) 1[u >= a V];  u ← u - dt o,    β = exp(-dt / τ)

    Backward, the mean output is the function :func:`rate_map` of the mean current, means weighted by β^(T - t) where neurons
    leak: its slope is 1 (1 / τ) between 0 and saturation, its derivative in V is 1 (1 / dt) above.
    Source: Meng et al., "Training high-performance low-latency spiking neural networks by differentiation on spike
    representation", CVPR 2022 (arXiv 2205.00459), equations 8 to 13 and code. Theirs gives every step the same share of a leaky
    neuron's gradient; here a step has its weight, which is exact.

    Args:
        height: V, positive; leaky neurons take about 0.3, others 6.
        share: a, the threshold as a share of V, in (0, 1]; the authors take 0.5, and 0.3 for leaky neurons.
        tau: τ of leaky neurons, positive; None for integrate-and-fire ones.
        dt: length of a step, in the units of τ, positive.
        trained: whether V is a parameter.
        floor: least V that training reaches, positive.
        height_gradient: what a leaky neuron's derivative in V is multiplied by above saturation; None for the exact 1 / dt. The
            authors take dt.
        surrogate: the derivative of a spike for attacks that choose "bptt"; in units of a V.

    Raises:
        UsageError: a number out of range, an unknown surrogate.

    Example:
        >>> RateNeuron(height=1.0)(torch.full((4, 1, 1), 0.5)).flatten()
        tensor([1., 0., 1., 0.])
    """

    height: Tensor
    modes: ClassVar[tuple[str, ...]] = ("bptt",)

    def __init__(
        self,
        height: Number = 6.0,
        share: Number = 0.5,
        tau: Number | None = None,
        dt: Number = 0.05,
        trained: bool = True,
        floor: Number = 1e-3,
        height_gradient: Number | None = None,
        surrogate: Surrogate | str | Mapping[str, Any] = "triangle",
    ) -> None:
        super().__init__()
        require(height > 0 and math.isfinite(height), f"the height of spikes must be positive, got {height}.")
        require(0 < share <= 1, f"share must lie in (0, 1], got {share}.")
        require(tau is None or tau > 0, f"tau must be positive, got {tau}.")
        require(dt > 0, f"dt must be positive, got {dt}.")
        require(0 < floor <= height, f"floor must be positive and at most the height {height}, got {floor}.")
        start = torch.tensor(float(height))
        if trained:
            self.height = nn.Parameter(start)
        else:
            self.register_buffer("height", start)
        self.share, self.tau, self.dt, self.floor = float(share), tau, float(dt), float(floor)
        self.height_gradient = height_gradient
        self.surrogate = find_surrogate(surrogate)
        self.backward_mode = "rate"

    def choose(self, surrogate: Surrogate | None, backward: str | None) -> None:
        """Let gradients pass in another way; a surrogate alone means through time."""
        super().choose(surrogate, backward or (None if surrogate is None else "bptt"))

    def forward(self, currents: Tensor) -> Tensor:
        """Map currents [T, B, ...] to outputs of the same shape."""
        # Where a step of the optimiser left the range, the forward pass stays in it, and the gradient leads back.
        height = self.height + (self.height.detach().clamp_min(self.floor) - self.height.detach())
        if self.backward_mode == "bptt":
            return self._run(currents, height)
        with torch.no_grad():
            out = self._run(currents, height)
        if self.tau is None:
            weights, slopes = torch.ones(len(currents)), _Slopes(1.0, 1.0, 1.0, True)
        else:
            weights = math.exp(-self.dt / self.tau) ** torch.arange(len(currents) - 1, -1, -1)
            of_height = 1 / self.dt if self.height_gradient is None else float(self.height_gradient)
            slopes = _Slopes(1 / self.tau, self.tau / self.dt, of_height, False)
        result: Tensor = _ByRate.apply(currents, height, out, (weights / weights.sum()).to(currents), slopes)
        return result

    def _run(self, currents: Tensor, height: Tensor) -> Tensor:
        u, out = torch.zeros_like(currents[0]), []
        keeps = 1.0 if self.tau is None else math.exp(-self.dt / self.tau)
        takes = 1.0 if self.tau is None else 1 - keeps
        threshold = self.share * height
        for current in currents:
            u = keeps * u + takes * current
            s = spike(u / threshold - 1, self.surrogate)
            u = u - height * s.detach()
            out.append(height * s)
        return torch.stack(out) / (1.0 if self.tau is None else self.dt)
