"""Gaussian augmentation: the base classifier learns to see through the noise it will vote under."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.objectives.base import Moment, Net
from stalwart.objectives.smoothed import Smoothed, log_mean_softmax


@dataclass(frozen=True, kw_only=True)
class SmoothGaussian(Smoothed):
    """Mean over noisy copies of CE(f(x + n), y), n ~ N(0, sigma^2 I).

    Source: Cohen, Rosenfeld, Kolter, ICML 2019 (arXiv 1902.02918), section 3.3, with one copy an input.
    """

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Return the noisy copies [m * B, ...], not clipped."""
        return (x + self.noise(x, moment)).flatten(0, 1)

    def combine(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean cross entropy of the copies, and the log of their mean softmax [B, K]."""
        logits = net(x_adv)
        copies = len(x_adv) // len(x)
        loss = F.cross_entropy(logits, y.repeat(copies))
        return loss, log_mean_softmax(logits.unflatten(0, (copies, len(x))))
