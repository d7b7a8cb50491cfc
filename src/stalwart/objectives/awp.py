"""Adversarial weight perturbation: flatten the loss landscape over the weights too."""

from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from stalwart.attacks.replaced import run_with
from stalwart.core.numbers import Number, require
from stalwart.objectives.base import Moment
from stalwart.objectives.wrapped import Wrapped


@dataclass(frozen=True, kw_only=True)
class AWP(Wrapped):
    """The base loss at w + v, where v climbs it:  v_l = gamma ||w_l|| g_l / ||g_l||.

    g is the gradient of the base loss on the same crafted inputs; only weights of two or more dimensions move. The
    gradient taken is that at w + v, applied to w.
    Source: Wu, Xia, Wang, NeurIPS 2020 (arXiv 2004.05884), equations 8 to 10.

    Attributes:
        gamma: relative size of the perturbation (0.01 for PGD-AT, 0.005 for TRADES).
        warmup: epochs of the base objective alone.
    """

    base: str = "pgd-at"
    gamma: Number = 0.01
    warmup: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gamma > 0, f"gamma must be positive, got {self.gamma}.")
        require(self.warmup >= 0, f"warmup must be at least 0 epochs, got {self.warmup}.")

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the base loss at the perturbed weights."""
        x_adv = self.craft(model, x, y, moment)
        weights = {name: p for name, p in model.named_parameters() if p.dim() > 1 and p.requires_grad}
        if moment.epoch < self.warmup:
            moved = {}
        else:
            moved = self.perturb(model, weights, x, x_adv, y)
        loss, logits = self.combine(lambda z: run_with(model, moved, z), x, x_adv, y)
        return loss + self.penalty(model), logits

    def perturb(
        self, model: nn.Module, weights: dict[str, nn.Parameter], x: Tensor, x_adv: Tensor, y: Tensor
    ) -> dict[str, Tensor]:
        """Return the weights w + v by name; v is a constant, the same on every data-parallel process."""
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        loss, _ = self.combine(lambda z: run_with(model, buffers, z), x, x_adv, y)
        # A weight that the loss does not depend on, such as that of a noise that is switched off, stays where it is.
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        moved: dict[str, Tensor] = {}
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is None:
                continue
            if distributed.is_initialized():
                distributed.all_reduce(gradient)
            length = gradient.norm()
            scale = torch.where(length > 0, self.gamma * weight.detach().norm() / length, torch.zeros_like(length))
            moved[name] = weight + scale * gradient
        return moved
