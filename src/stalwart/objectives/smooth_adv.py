"""SmoothAdv: adversarial training of the smoothed classifier."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from stalwart.core.numbers import Number, require
from stalwart.objectives.base import Moment
from stalwart.objectives.smooth_gaussian import SmoothGaussian
from stalwart.objectives.smoothed import attack_smoothed
from stalwart.sets import L2


@dataclass(frozen=True, kw_only=True)
class SmoothAdv(SmoothGaussian):
    """Mean over k of CE(f(x' + n_k), y), where x' attacks the smoothed classifier inside an ℓ2 ball,

        x' = argmax_{||x' - x||_2 <= eps} -log((1/m) sum_k softmax(f(x' + n_k))_y),

    by PGD from x with normalised gradients and step 2 eps / steps. The attack sees the very noise that is trained on; the
    radius grows linearly from eps / warmup in the first epoch.
    Source: Salman et al., NeurIPS 2019 (arXiv 1906.04584), sections 2.2 and 2.3 ("SmoothAdv_PGD"); all m copies are trained on
    and the radius is warmed up as in the authors' code.

    Attributes:
        eps: radius of the attack in data units.
        steps: its steps.
        warmup: epochs until the radius is reached; 0 for the whole radius at once.
    """

    draws: int = 4
    eps: Number = 1.0
    steps: int = 10
    warmup: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.eps < math.inf, f"eps must be positive and finite, got {self.eps}.")
        require(self.steps >= 1, f"steps must be at least 1, got {self.steps}.")
        require(self.warmup >= 0, f"warmup must be at least 0 epochs, got {self.warmup}.")

    def radius(self, epoch: int) -> float:
        """Return the radius of the attack in an epoch, counted from 0."""
        return self.eps * min(1.0, (epoch + 1) / max(self.warmup, 1))

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Return the noisy copies of the attacked inputs, [m * B, ...]."""
        noise, eps = self.noise(x, moment), self.radius(moment.epoch)
        x_adv = attack_smoothed(model, x, x, y, noise, L2(eps), self.steps, 2 * eps / self.steps)
        return (x_adv + noise).flatten(0, 1)
