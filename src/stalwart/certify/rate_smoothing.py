"""Certified ℓ1 radii for networks that see their input through Poisson coding, from votes over its draws.

Coding is randomised smoothing: a pixel x_i sends each of T spikes with probability r x_i, and the smoothed classifier is

    g(x) = argmax_c P(f(y) = c),    y ~ coding of x over T steps.

Draws of x and of x + d differ in total variation by at most the sum of what all the independent coins differ by, T r ||d||_1,
so that a class with P(f(y) = c) >= p > 1/2 stays first for all x + d in [0, 1] with

    ||d||_1 < R = (p - 1/2) / (T r),

or half of that with signed coding, whose probability |2 x_i - 1| (and sign) moves twice as fast. The radius says nothing
about ℓ∞ balls of useful size: their ℓ1 radius is the number of pixels times theirs.

Source: Mukhoty et al., "Certified adversarial robustness for rate encoded spiking neural networks", ICLR 2024; the factor 1 / T
is missing in its code, and without it the certificate is false: an OR of two bits is a counter-example.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stalwart.attacks.guard import undisturbed
from stalwart.certify.smoothing import Certificate, SmoothResult, lower_bound, tally, two_stage
from stalwart.core.checks import check_images, check_logits
from stalwart.core.errors import InputError
from stalwart.core.noise import for_each_sample, noise, noise_layers
from stalwart.core.numbers import Number, require
from stalwart.core.random import derive
from stalwart.spiking import Poisson


@dataclass(frozen=True)
class RateSmoothing:
    """With how many draws of the coding to certify.

    Args:
        n0: draws that choose the class, at least 1.
        n: fresh draws that bound its probability.
        alpha: probability that a certificate is false, in (0, 1/2).
        batch: draws in one forward pass.

    Raises:
        UsageError: a value out of range, or so few draws that even unanimous ones could not certify anything.
    """

    n0: int = 10
    n: int = 1000
    alpha: Number = 0.001
    batch: int = 128

    def __post_init__(self) -> None:
        require(self.n0 >= 1 and self.batch >= 1, f"n0 and batch must be at least 1, got {self.n0} and {self.batch}.")
        require(0 < self.alpha < 0.5, f"alpha must lie in (0, 1/2), got {self.alpha}.")
        require(
            lower_bound(self.n, self.n, self.alpha) > 0.5,
            f"n = {self.n} draws cannot certify anything at alpha = {self.alpha:g}, even if all agree; use more.",
        )

    def certify(self, model: nn.Module, x: Tensor, seed: int = 0) -> SmoothResult:
        """Certify each input; ``radius`` is in ℓ1, in data units.

        Args:
            model: [B, ...] -> [B, K], random by one Poisson encoder only, which sees the pixels themselves.
            x: inputs [B, ...] in [0, 1].
            seed: the same seed gives the same draws for the i-th input.

        Raises:
            InputError: another source of randomness, none, or inputs and logits that are not what they must be.
        """
        check_images(x)
        with undisturbed(model, seed), torch.no_grad():
            encoder = _encoder(model, x[:2])
            unit = encoder.steps * encoder.rate * (2.0 if encoder.signed else 1.0)

            def certify_one(row: Tensor, number: int) -> Certificate:
                def votes(count: int, what: str) -> Tensor:
                    return self._votes(model, row, count, derive(seed, what, number))

                return two_stage(votes, self.n0, self.n, self.alpha, lambda p: (p - 0.5) / unit)

            return SmoothResult.of([certify_one(row, number) for number, row in enumerate(x)])

    def _votes(self, model: nn.Module, x: Tensor, count: int, seed: int) -> Tensor:
        """Return the votes [K] of ``count`` draws."""
        found = []
        with noise(model, seed=seed):
            for start in range(0, count, self.batch):
                copies = x.expand(min(self.batch, count - start), *x.shape)
                logits = model(copies)
                check_logits(logits, len(copies))
                found.append(tally(logits))
        return torch.stack(found).sum(0)


def _encoder(model: nn.Module, x: Tensor) -> Poisson:
    """Return the model's only source of randomness."""
    on = [layer for layer in noise_layers(model).values() if layer.mode == "on"]
    if len(on) != 1 or not isinstance(on[0], Poisson) or not for_each_sample(model, x):
        kinds = ", ".join(type(one).__name__ for one in on) or "none"
        raise InputError(
            f"an l1 certificate by rate coding needs a model whose only noise is one Poisson encoder, switched on; noise that "
            f"is on here: {kinds}."
        )
    seen: list[Tensor] = []
    hook = on[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with hook:
        model(x.clone())
    if len(seen) != 1 or seen[0].shape != x.shape or not torch.equal(seen[0], x):
        raise InputError(
            "the Poisson encoder does not see the pixels themselves; what stands before it changes distances, and the "
            "certificate would be about something else."
        )
    return on[0]
