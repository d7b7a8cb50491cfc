"""MACER: maximise the certified radius itself, without an attack."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.core.numbers import Number, require
from stalwart.objectives.base import Moment
from stalwart.objectives.smoothed import Smoothed, log_mean_softmax, noisy_logits


@dataclass(frozen=True, kw_only=True)
class MACER(Smoothed):
    """Cross entropy of the smoothed prediction, and a hinge on the soft certified radius of what it gets right:

        -log((1/k) sum_i softmax(z_i)_y) + weight * (sigma / 2) * max(0, gamma - (Phi^-1(p_1) - Phi^-1(p_2)))

    averaged over the batch, with z_i = f(x + n_i) and p_1 >= p_2 the two largest entries of (1/k) sum_i softmax(beta z_i); the
    second term counts only where p_1 is the label's.
    Source: Zhai et al., ICLR 2020 (arXiv 2001.02378), algorithm 1.

    Attributes:
        weight: lambda, weight of the radius.
        gamma: gap of Phi^-1 beyond which a sample is certified well enough; a radius of sigma * gamma / 2.
        beta: inverse temperature of the softmax behind the radius.
        delay: epochs of the cross entropy alone (large sigma needs some).
    """

    draws: int = 16
    weight: Number = 12.0
    gamma: Number = 8.0
    beta: Number = 16.0
    delay: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.weight >= 0, f"weight must be at least 0, got {self.weight}.")
        require(self.gamma > 0, f"gamma must be positive, got {self.gamma}.")
        require(self.beta > 0, f"beta must be positive, got {self.beta}.")
        require(self.delay >= 0, f"delay must be at least 0 epochs, got {self.delay}.")

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the loss and the log of the mean softmax [B, K]."""
        logits = noisy_logits(model, x, self.noise(x, moment))
        found = log_mean_softmax(logits)
        loss = F.nll_loss(found, y)
        if moment.epoch >= self.delay:
            loss = loss + self.weight * self.sigma / 2 * self.hinge(logits, y).to(loss.dtype)
        return loss, found

    def hinge(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return max(0, gamma - gap) of logits [k, B, K], summed over the samples it counts for, over B; float64."""
        # In double precision: p_1 comes close to 1, and Phi^-1 is infinite there.
        top, order = (self.beta * logits.double()).softmax(-1).mean(0).topk(2, -1)
        with torch.no_grad():
            counts = (order[:, 0] == y) & (_gap(top) <= self.gamma)
        # What does not count is left out before the gap is differentiated: 0 times an infinite slope would be NaN.
        return (self.gamma - _gap(top[counts])).sum() / len(y)


def _gap(top: Tensor) -> Tensor:
    return torch.special.ndtri(top[:, 0]) - torch.special.ndtri(top[:, 1])
