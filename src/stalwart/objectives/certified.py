"""What objectives of certified training share: a radius that grows, a box around each input, regularisers, losses of bounds."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.attacks.losses import cross_entropy
from stalwart.core.errors import UsageError
from stalwart.core.numbers import Number, require
from stalwart.models.classifier import Classifier
from stalwart.objectives.base import Moment, Net, Objective
from stalwart.objectives.bounds_adapter import Box
from stalwart.objectives.inner import maximise
from stalwart.objectives.regularisers import relu_balance, tightness
from stalwart.objectives.schedules import Anneal
from stalwart.sets import Linf


def margin_loss(margins: Tensor) -> Tensor:
    """Return log(1 + Σ_j exp(-m_j)) [B] of margins [B, K - 1]: cross entropy of logits 0 at y and -m_j elsewhere."""
    return F.softplus((-margins).logsumexp(1))


def margins_of(logits: Tensor, y: Tensor) -> Tensor:
    """Return z_y - z_j [B, K - 1] of logits [B, K], j ascending without y."""
    own = F.one_hot(y, logits.shape[1]).bool()
    return logits[own][:, None] - logits[~own].reshape(len(logits), -1)


@dataclass(frozen=True, eq=False)
class Step:
    """One batch's loss before regularisers, the clean logits [B, K], and the boxes it bounded the network on."""

    loss: Tensor
    logits: Tensor
    boxes: tuple[Box, ...]


@dataclass(frozen=True, kw_only=True)
class Certified(Objective):
    """Base record of certified training against the ℓ∞ ball of radius eps in [0, 1].

    In the first ``clean_epochs`` the loss is the clean cross entropy; then the radius grows from 0 to ``eps``.

    Attributes:
        eps: final radius in data units.
        clean_epochs: epochs of clean training before the radius grows.
        ramp_epochs: epochs over which it grows.
        growth: "linear" or "smooth", see :class:`stalwart.objectives.schedules.Anneal`.
        regularise: weight λ of Shi's two regularisers, which enter as λ (1 - eps / eps_max); 0.5 in their paper.
        tau: their tolerance τ.
        l1: weight of the sum of absolute weights of linear and convolutional layers.
    """

    eps: Number = 8 / 255
    clean_epochs: Number = 1.0
    ramp_epochs: Number = 4.0
    growth: Literal["linear", "smooth"] = "linear"
    regularise: Number = 0.0
    tau: Number = 0.5
    l1: Number = 0.0

    def __post_init__(self) -> None:
        require(self.eps > 0, f"eps must be positive, got {self.eps}.")
        require(self.regularise >= 0, f"regularise must be at least 0, got {self.regularise}.")
        require(0 < self.tau <= 1, f"tau must lie in (0, 1], got {self.tau}.")
        require(self.l1 >= 0, f"l1 must be at least 0, got {self.l1}.")
        _ = self.radius

    @property
    def radius(self) -> Anneal:
        """The radius over time."""
        return Anneal(start=0.0, end=self.eps, begin=self.clean_epochs, over=self.ramp_epochs, shape=self.growth)

    def region(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the ends of the boxes to train on at the radius of this moment."""
        return Linf(eps).bounds(x)

    def step(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, moment: Moment) -> Step:
        """Return the loss at the radius of this moment, without regularisers."""
        raise NotImplementedError

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the whole loss and the clean logits [B, K]."""
        eps = self.radius.at(moment.time)
        if eps == 0:
            logits = model(x)
            return F.cross_entropy(logits, y) + self.penalty(model), logits
        found = self.step(model, x, y, eps, moment)
        loss = found.loss + self.penalty(model)
        weight = self.regularise * (1 - eps / self.eps)
        if weight > 0:
            lower, upper = Linf(eps).bounds(x)
            if isinstance(model, Classifier):  # widths are compared from the network's first layer on
                lower, upper = model.normalise(lower), model.normalise(upper)
            intervals = [interval for box in found.boxes for _, interval in box.preactivations]
            loss = loss + weight * tightness(intervals, lower, upper, self.tau)
            loss = loss + weight * relu_balance(intervals, self.tau)
        return loss, found.logits

    def penalty(self, model: nn.Module) -> Tensor | float:
        """Return the weighted sum of absolute weights."""
        if self.l1 == 0:
            return 0.0
        kinds = nn.Linear | nn.modules.conv._ConvNd
        return self.l1 * torch.stack([m.weight.abs().sum() for m in model.modules() if isinstance(m, kinds)]).sum()

    def combine(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Refuse: a loss of bounds is no function of outputs on crafted inputs, as objectives around it expect."""
        raise UsageError("an objective of certified training cannot stand inside another one; use it by itself.")


@dataclass(frozen=True, kw_only=True)
class Attacking(Certified):
    """Base record of certified training that attacks its inputs too, by PGD on the cross entropy in evaluation mode.

    Attributes:
        steps: steps of the attack.
        relative_step: its step size as a share of the attack's radius; default 2.5 / steps.
        attack_scale: the attack's radius as a multiple of the moment's eps.
    """

    steps: int = 8
    relative_step: Number | None = None
    attack_scale: Number = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, f"steps must be at least 1, got {self.steps}.")
        require(
            self.relative_step is None or self.relative_step > 0,
            f"relative_step must be positive, got {self.relative_step}.",
        )
        require(self.attack_scale > 0, f"attack_scale must be positive, got {self.attack_scale}.")

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, moment: Moment) -> Tensor:
        """Return adversarial inputs [B, ...] at ``attack_scale`` times the radius of this moment, from a random start."""
        within = Linf(self.attack_scale * eps)
        start = within.sample(x, moment.generator(x, "start"))
        step = (self.relative_step or 2.5 / self.steps) * self.attack_scale * eps
        return maximise(model, x, start, lambda z: cross_entropy(z, y).mean(0), within, self.steps, step)
