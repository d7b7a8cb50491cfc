"""Layers whose neurons feed each other: leaky integrate-and-fire ones, and the adaptive ones of LSNNs."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stalwart.core.errors import InputError
from stalwart.core.numbers import Number, require
from stalwart.spiking.neurons import Neurons
from stalwart.spiking.reference import RESETS
from stalwart.spiking.spike import spike
from stalwart.spiking.surrogates import Surrogate, find_surrogate


class _Recurrent(Neurons):
    """Input weights [N, I] and recurrent weights [N, N], of which the diagonal is never used."""

    threshold: float

    def __init__(self, inputs: int, units: int, surrogate: Surrogate | str | Mapping[str, Any]) -> None:
        super().__init__()
        require(inputs >= 1 and units >= 1, f"a layer needs at least one input and one unit, got {inputs} and {units}.")
        self.inputs, self.units = inputs, units
        self.input = nn.Linear(inputs, units, bias=False)
        self.recurrent = nn.Linear(units, units, bias=False)
        self.surrogate = find_surrogate(surrogate)
        self.backward_mode = "bptt"

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs [T, B, I] to spikes [T, B, N].

        Raises:
            InputError: another shape.
        """
        return self._run(x)[0]

    def distances(self, x: Tensor) -> Tensor:
        """Return how far membranes are from the threshold, in units of it, [T, B, N], of inputs [T, B, I]."""
        return torch.stack(self._run(x)[1])

    def _run(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return spikes, and the distances of each step."""
        raise NotImplementedError

    def _on_chip(self, name: str, value: float, currents: Tensor) -> Tensor | float:
        if not self.disturbances:
            return value
        return self.on_chip(name, currents.new_tensor(value), currents.shape[2:])

    def _start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs' currents [T, B, N] and the recurrent weights without their diagonal, transposed."""
        if x.dim() != 3 or not len(x) or x.shape[2] != self.inputs:
            raise InputError(f"the layer takes inputs [T, B, {self.inputs}] of at least one step, got {list(x.shape)}.")
        weight = self.recurrent.weight
        currents = self.input(x)
        if self.disturbances:
            currents = currents + self.threshold * self.on_chip("bias", currents.new_zeros(()), currents.shape[2:])
        return currents, (weight * (1 - torch.eye(self.units, dtype=weight.dtype, device=weight.device))).T


class RecurrentLIF(_Recurrent):
    """Leaky integrate-and-fire neurons with recurrent weights, inputs [T, B, I] to spikes [T, B, N].

        u[t] = λ v[t-1] + W_in x[t] + W_rec s[t-1];    s[t] = 1[u[t] >= θ];    v[t] = u[t] - θ s[t]  or  u[t] (1 - s[t])

    State starts at 0 and is gone afterwards. Gradients go through time and recurrent spikes; resets are detached.

    Args:
        inputs: I.
        units: N.
        leak: λ in [0, 1].
        threshold: θ, positive.
        reset: "soft", "hard" or "none".
        surrogate: the derivative of a spike.

    Raises:
        UsageError: a number out of range, an unknown reset or surrogate.

    Example:
        >>> RecurrentLIF(3, 5)(torch.rand(7, 2, 3)).shape
        torch.Size([7, 2, 5])
    """

    disturbable: ClassVar[tuple[str, ...]] = ("threshold", "leak", "bias", "membrane")

    def __init__(
        self,
        inputs: int,
        units: int,
        leak: Number = 0.9,
        threshold: Number = 1.0,
        reset: str = "soft",
        surrogate: Surrogate | str | Mapping[str, Any] = "triangle",
    ) -> None:
        super().__init__(inputs, units, surrogate)
        require(0 <= leak <= 1, f"the leak of neurons must lie in [0, 1], got {leak}.")
        require(threshold > 0, f"the threshold of neurons must be positive, got {threshold}.")
        require(reset in RESETS, f"unknown reset '{reset}'; known: {', '.join(RESETS)}.")
        self.leak, self.threshold, self.reset = float(leak), float(threshold), reset

    def _run(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        currents, recurrent = self._start(x)
        leak, threshold = (self._on_chip(name, getattr(self, name), currents) for name in ("leak", "threshold"))
        noise = self.membrane_noise(currents)
        if noise is not None:
            # Membranes take up a step's current as it is, so that noise on them is noise on it.
            currents = currents + self.threshold * noise
        v, s, out, distances = torch.zeros_like(currents[0]), torch.zeros_like(currents[0]), [], []
        for current in currents:
            u = leak * v + current + s @ recurrent
            distances.append(u / threshold - 1)
            s = spike(distances[-1], self.surrogate)
            fired = s.detach()
            v = u - threshold * fired if self.reset == "soft" else u * (1 - fired) if self.reset == "hard" else u
            out.append(s)
        return torch.stack(out), distances


class AdaptiveLIF(_Recurrent):
    """Recurrent neurons whose threshold rises with their own spikes, inputs [T, B, I] to spikes [T, B, N] in {0, 1}.

        b ← ρ_b b + (1 - ρ_b) o / dt;    B = b₀ + β b
        V ← ρ_V V + (1 - ρ_V) (W_in x + W_rec o / dt) - o B dt;    o ← 1[V > B] outside the refractory period

    with ρ = exp(-dt / τ) and, on the right, o of the step before. The derivative of a spike is that of the surrogate at
    (V - B) / B, which both V and B feed; gradients go through resets and thresholds too.
    Source: Bellec et al., "Long short-term memory and learning-to-learn in networks of spiking neurons", NeurIPS 2018; order
    and defaults as in the code of Büchel, Faber and Muir, ICLR 2022 (arXiv 2106.05009).

    Args:
        inputs: I.
        units: N.
        tau: τ_V of membranes in ms, positive.
        tau_adaptation: τ_b of thresholds in ms, positive.
        threshold: b₀, positive.
        beta: β, how far a threshold rises, at least 0; 0 for neurons that do not adapt.
        refractory: least steps from one spike to the next, at least 1.
        dt: length of a step in ms, positive.
        surrogate: the derivative of a spike; by default 0.3 max(0, 1 - |z|), dampened to keep gradients from exploding.

    Raises:
        UsageError: a number out of range, an unknown surrogate.
    """

    disturbable: ClassVar[tuple[str, ...]] = ("threshold", "leak", "leak_adaptation", "bias", "membrane")

    def __init__(
        self,
        inputs: int,
        units: int,
        tau: Number = 20.0,
        tau_adaptation: Number = 98.0,
        threshold: Number = 0.01,
        beta: Number = 2.0,
        refractory: int = 2,
        dt: Number = 1.0,
        surrogate: Surrogate | str | Mapping[str, Any] = "linear",
    ) -> None:
        super().__init__(inputs, units, surrogate)
        for what, value in (("tau", tau), ("tau_adaptation", tau_adaptation), ("threshold", threshold), ("dt", dt)):
            require(value > 0, f"{what} must be positive, got {value}.")
        require(beta >= 0, f"beta must be at least 0, got {beta}.")
        require(refractory >= 1, f"refractory must be at least 1 step, got {refractory}.")
        self.threshold, self.beta, self.refractory, self.dt = float(threshold), float(beta), refractory, float(dt)
        self.decay, self.decay_adaptation = math.exp(-dt / tau), math.exp(-dt / tau_adaptation)

    def _run(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        currents, recurrent = self._start(x)
        decay = self._on_chip("leak", self.decay, currents)
        decay_b = self._on_chip("leak_adaptation", self.decay_adaptation, currents)
        threshold = self._on_chip("threshold", self.threshold, currents)
        noise = self.membrane_noise(currents)
        rest = torch.zeros_like(currents[0])
        v, b, o, waiting, out, distances = rest, rest, rest, rest, [], []
        for t, current in enumerate(currents):
            b = decay_b * b + (1 - decay_b) * o / self.dt
            barrier = threshold + self.beta * b
            driven = current + (o / self.dt) @ recurrent
            v = decay * v + (1 - decay) * driven - o * barrier * self.dt
            if noise is not None:
                v = v + self.threshold * noise[t]
            ready = (waiting == 0).to(v)
            distances.append((v - barrier) / barrier)
            o = ready * spike(distances[-1], self.surrogate, strict=True)
            waiting = (waiting - 1).clamp_min(0) + (self.refractory - 1) * o.detach()
            out.append(o)
        return torch.stack(out), distances


def rate_penalty(spikes: Tensor, target: Number = 10.0, dt: Number = 1.0) -> Tensor:
    """Return Σ (r_n - target)² over neurons, r_n the mean rate over time and batch in Hz.

    Büchel, Faber and Muir (ICLR 2022) add 0.001 times it to the loss.

    Args:
        spikes: [T, B, N] in {0, 1}.
        target: wanted rate in Hz, at least 0.
        dt: length of a step in ms, positive.
    """
    require(target >= 0, f"target must be at least 0 Hz, got {target}.")
    require(dt > 0, f"dt must be positive, got {dt}.")
    rates = spikes.flatten(0, 1).mean(0) * (1000 / dt)
    return (rates - target).square().sum()
