"""Regularised adversarial training of spiking networks: attacked inputs, and weights drawn to orthonormal rows."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.core.layers import WEIGHTED
from stalwart.core.numbers import Number, require
from stalwart.core.random import generator
from stalwart.objectives.base import Moment, Net
from stalwart.objectives.inner import Adversarial
from stalwart.spiking import gradients, neurons
from stalwart.spiking.modes import BACKWARDS


def orthonormalise(weight: Tensor, beta: float) -> Tensor:
    """Return W + beta (W - W W^T W), one gradient step on ||W W^T - I||² / 4, which draws the singular values to 1.

    A singular value s becomes s + beta s (1 - s²); those above sqrt(2 / beta + 1) would grow instead.
    Source: Cisse et al., "Parseval networks", ICML 2017 (arXiv 1704.08847), equation 8.

    Args:
        weight: W, [rows, ...], flattened to rows.
        beta: step size, at least 0.
    """
    rows = weight.flatten(1)
    return ((1 + beta) * rows - beta * (rows @ rows.T) @ rows).reshape(weight.shape)


@dataclass(frozen=True, kw_only=True)
class RAT(Adversarial):
    """CE(f(x'), y) on attacked inputs x' of a spiking network, and after each step W <- W + beta (W - W W^T W).

    One step of size eps from x is FGSM, more are PGD from a random start; both in evaluation mode. A matrix of 200 or more
    rows moves a random 30 % of them, of its rows alone. A model without neurons is trained with backward "bptt".
    Of the authors' residual networks, whose sums are trained convex combinations, this is the part for plain sums.
    Source: Ding et al., "SNN-RAT", NeurIPS 2022, equations 12 to 15 and code.

    Attributes:
        backward: how gradients pass neurons while attacking, a mode of :mod:`stalwart.spiking.modes`; training itself
            goes through time.
        beta: β, how far weights move at each step; 0 for adversarial training alone.
    """

    eps: Number = 2 / 255
    steps: int = 1
    backward: str = "bptt"
    beta: Number = 5e-4
    many: ClassVar[int] = 200
    share: ClassVar[float] = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta >= 0, f"beta must be at least 0, got {self.beta}.")
        known = ", ".join(BACKWARDS)
        require(self.backward in BACKWARDS, f"unknown backward mode '{self.backward}'; known: {known}.")

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Attack the cross entropy with the chosen gradient."""
        one = self.steps == 1
        start = x if one else self.within.sample(x, moment.generator(x, "start"))
        step = self.step or self.eps if one else self.step
        if self.backward == "bptt":
            return self.climb_cross_entropy(model, x, y, start, step=step)
        with gradients(model, backward=self.backward):
            return self.climb_cross_entropy(model, x, y, start, step=step)

    def combine(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the adversarial cross entropy and logits."""
        logits = net(x_adv)
        return F.cross_entropy(logits, y), logits

    def penalty(self, model: nn.Module) -> float:
        """Return 0.

        Raises:
            UsageError: a backward mode of neurons, for a model that has none.
        """
        require(
            self.backward == "bptt" or bool(neurons(model)),
            f"backward '{self.backward}' is a gradient of neurons; give the model a spiking section, or take 'bptt'.",
        )
        return 0.0

    @torch.no_grad()
    def after_step(self, model: nn.Module, moment: Moment) -> None:
        """Draw the rows of every linear and convolutional layer towards orthonormality."""
        if not self.beta:
            return
        for path, layer in model.named_modules():
            if not isinstance(layer, WEIGHTED):
                continue
            weight = layer.weight
            if len(weight) < self.many:
                weight.copy_(orthonormalise(weight, self.beta))
                continue
            # Drawn on the CPU, so that the rows are the same wherever the model is.
            order = torch.randperm(len(weight), generator=generator(moment.seed, "rows", path))
            rows = order[: int(self.share * len(weight))].to(weight.device)
            weight[rows] = orthonormalise(weight[rows], self.beta)
