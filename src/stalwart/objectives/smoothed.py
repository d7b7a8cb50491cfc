"""What objectives for randomised smoothing share: noisy copies of a batch, and their averaged prediction.

They train the base classifier f so that the smoothed one, g(x) = argmax_c P(f(x + n) = c) with n ~ N(0, sigma^2 I), is
right and sure of it. Certify with the same sigma; noisy inputs are not clipped, as in certification.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from stalwart.core.numbers import Number, require
from stalwart.core.random import normal
from stalwart.objectives.base import Moment, Objective
from stalwart.objectives.inner import maximise
from stalwart.sets import L2


@dataclass(frozen=True, kw_only=True)
class Smoothed(Objective):
    """Base record of objectives that train on noisy copies.

    Attributes:
        sigma: standard deviation of the noise in data units.
        draws: m, noisy copies of each input in one step; they multiply the cost.
    """

    sigma: Number = 0.25
    draws: int = 1

    def __post_init__(self) -> None:
        require(0 < self.sigma < math.inf, f"sigma must be positive and finite, got {self.sigma}.")
        require(self.draws >= 1, f"draws must be at least 1, got {self.draws}.")

    def noise(self, x: Tensor, moment: Moment) -> Tensor:
        """Return ``draws`` noises for each input, [m, B, ...], the same whenever the moment is the same."""
        shape = (self.draws, *x.shape)
        return self.sigma * normal(shape, moment.generator(x, "smoothing"), x, batch_axis=1)


def noisy_logits(net: Callable[[Tensor], Tensor], x: Tensor, noise: Tensor) -> Tensor:
    """Return the logits [m, B, K] of x + noise for inputs x [B, ...] and noise [m, B, ...], all in one pass."""
    return net((x + noise).flatten(0, 1)).unflatten(0, noise.shape[:2])


def log_mean_softmax(logits: Tensor) -> Tensor:
    """Return log((1/m) sum_k softmax(z_k)) of logits [m, B, K]: [B, K]."""
    return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))


class _Copies(nn.Module):
    """A model seen through fixed noise: [B, ...] -> [m * B, K]."""

    def __init__(self, model: nn.Module, noise: Tensor) -> None:
        super().__init__()
        self.model, self.offsets = model, noise

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of all noisy copies."""
        return self.model((x + self.offsets).flatten(0, 1))


def attack_smoothed(
    model: nn.Module, x: Tensor, start: Tensor, y: Tensor, noise: Tensor, within: L2, steps: int, step: float
) -> Tensor:
    """Climb -log((1/m) sum_k softmax(f(z + n_k))_y) from ``start`` by ``steps`` normalised-gradient steps inside ``within``.

    The model is in evaluation mode meanwhile. Source: Salman et al., NeurIPS 2019, section 2.2.

    Args:
        x: clean inputs [B, ...].
        start: first iterates [B, ...].
        y: labels [B].
        noise: n_k, [m, B, ...].
        step: step size in data units.
    """

    def value(logits: Tensor) -> Tensor:
        found = log_mean_softmax(logits[0].unflatten(0, noise.shape[:2]))
        return -found.gather(-1, y[:, None]).squeeze(-1)

    return maximise(_Copies(model, noise), x, start, value, within, steps, step)
