"""SmoothMix: mix each input with an unrestricted adversarial twin that is told to be unsure."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.attacks.losses import kl_divergence
from stalwart.core.numbers import Number, require
from stalwart.core.random import uniform
from stalwart.objectives.base import Moment
from stalwart.objectives.smoothed import Smoothed, attack_smoothed, log_mean_softmax, noisy_logits
from stalwart.sets import L2


@dataclass(frozen=True, kw_only=True)
class SmoothMix(Smoothed):
    """Cross entropy of noisy copies, and calm predictions on the way to an over-confident point far away:

        mean_k CE(f(x + n_k), y) + eta * 1[argmax F(x) = y] * mean_k KL((1 - t) F(x) + t / K || softmax f(x_t + n_k)),

    averaged over the batch, with F(x) = (1/m) sum_k softmax f(x + n_k), x_t = (1 - t) x + t x', t ~ U(0, 1/2). The twin x'
    comes from ``steps`` normalised-gradient steps of length ``step`` on -log F(.)_y, in no ball, clipped to [0, 1] each
    time. All share the noise n_k. eta grows linearly over ``warmup`` epochs. Gradients flow through F in the target, as
    in the authors' code.
    Source: Jeong et al., NeurIPS 2021 (arXiv 2111.09277), section 3.

    Attributes:
        eta: weight of the divergence.
        steps: T, steps of the attack (2, 4, 8 for sigma 0.25, 0.5, 1 on MNIST).
        step: alpha, its step size in data units.
        warmup: epochs until eta is reached; 0 for all of it at once.
        one_step: start from x moved by the first step of the attack (at most step, warmed up like eta), not from x.
    """

    draws: int = 4
    eta: Number = 5.0
    steps: int = 4
    step: Number = 1.0
    warmup: int = 10
    one_step: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.eta >= 0, f"eta must be at least 0, got {self.eta}.")
        require(self.steps >= 1 + self.one_step, f"steps must be at least {1 + self.one_step}, got {self.steps}.")
        require(self.step > 0, f"step must be positive, got {self.step}.")
        require(self.warmup >= 0, f"warmup must be at least 0 epochs, got {self.warmup}.")

    def warm(self, epoch: int) -> float:
        """Return the share of eta that holds in an epoch, counted from 0."""
        return min(1.0, (epoch + 1) / max(self.warmup, 1))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the loss and the log of the mean softmax [B, K]."""
        noise, warm = self.noise(x, moment), self.warm(moment.epoch)
        x, twin = self.pair(model, x, y, noise, warm)
        logits = noisy_logits(model, x, noise)
        smooth = log_mean_softmax(logits)
        loss = F.cross_entropy(logits.flatten(0, 1), y.repeat(self.draws))

        t = (1 - uniform(y.shape, moment.generator(x, "mix"), x)) / 2  # never 0, so that the target has a logarithm
        shares = t.reshape(-1, *[1] * (x.dim() - 1))
        mixed = noisy_logits(model, (1 - shares) * x + shares * twin, noise).log_softmax(-1)
        target = (1 - t[:, None]) * smooth.exp() + t[:, None] / smooth.shape[-1]
        calm = kl_divergence(target.log().expand_as(mixed), mixed).mean(0)
        right = smooth.detach().argmax(-1) == y
        return loss + self.eta * warm * (right * calm).mean(), smooth

    def pair(self, model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, warm: float) -> tuple[Tensor, Tensor]:
        """Return the two ends [B, ...] that are mixed: x (or where its first step leads) and the twin."""
        # Steps of this length never leave a ball of steps + 1 of them, so that only the box acts.
        free = L2((self.steps + 1) * self.step)
        first = attack_smoothed(model, x, x, y, noise, free, 1, self.step)
        twin = attack_smoothed(model, x, first, y, noise, free, self.steps - 1, self.step)
        return (L2(warm * self.step).project(x, first) if self.one_step else x), twin
