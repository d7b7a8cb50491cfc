"""Adversarial regularisation against noise on the weights."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.attacks.losses import kl_divergence
from stalwart.attacks.replaced import run_with
from stalwart.attacks.weight_steps import started, stepped
from stalwart.core.layers import WEIGHTED
from stalwart.core.modes import evaluating
from stalwart.core.numbers import Number, require
from stalwart.core.quick import lean_copy
from stalwart.core.random import derive, isolated
from stalwart.models.classifier import Classifier, Normalise
from stalwart.models.recurrent import Counts, InPieces, Rates
from stalwart.objectives.base import Moment, Objective
from stalwart.objectives.forward_noise import noisy
from stalwart.objectives.moved import shifted, slopes_of
from stalwart.sets import RelativeBox
from stalwart.spiking import LIF, AdaptiveLIF, Direct, InTime, RecurrentLIF, SpikingNetwork
from stalwart.stochastic import noise

Jacobian = Literal["diagonal", "identity"]

_PLAIN = {
    *WEIGHTED, nn.Sequential, nn.Flatten, nn.Identity, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Softplus, nn.Tanh, nn.Sigmoid,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.ZeroPad2d, Classifier, Normalise, SpikingNetwork, Direct, InTime, LIF,
    InPieces, Counts, Rates, RecurrentLIF, AdaptiveLIF,
}  # fmt: skip
"""Layers that are known to do the same in training and in evaluation mode, and to draw nothing.

A network of them alone can climb in a copy that does less work."""


def attached(weights: Mapping[str, Tensor], moved: Mapping[str, Tensor], jacobian: Jacobian) -> dict[str, Tensor]:
    """Return ``moved`` with gradients that go to ``weights``.

    "diagonal" takes the share by which each weight moved for a constant, moved = w + |w| share, whose Jacobian is
    1 + sign(w) share; "identity" takes the difference for one. Weights of 0 do not move.

    Args:
        weights: w by name, with gradients.
        moved: where they were moved to.
        jacobian: which.
    """
    if jacobian == "identity":
        return shifted(weights, moved)
    found = {}
    for name, weight in weights.items():
        size = weight.detach().abs()
        share = torch.where(size > 0, (moved[name] - weight.detach()) / size, torch.zeros_like(size))
        found[name] = weight + weight.abs() * share.detach()
    return found


@dataclass(frozen=True, kw_only=True)
class WeightKL(Objective):
    """CE(f(x; w'), y) + beta KL(p(x; w) || p(x; w*)), where w* climbs the divergence in the box |w* - w| <= zeta |w|.

        w* <- w + init_noise |w| R,  then steps times:  w* <- Project(w* + (zeta / steps) |w| sign(grad KL))

    w' = w + forward_noise |w| R is w itself by default. The divergence is summed over classes, averaged over the batch and
    taken in evaluation mode, with the same draws of noise layers in both of its arguments. Its gradient flows through both:
    through w, and through w* by the Jacobian of w* with its signs held constant.
    Source: Büchel, Faber, Muir, ICLR 2022 (arXiv 2106.05009), section 2, and the authors' code.

    Attributes:
        beta: weight of the divergence.
        zeta: half-width of the box as a share of |w|.
        steps: steps of the ascent; one already helps.
        init_noise: standard deviation of the start as a share of |w|; at w itself the divergence has no slope.
        jacobian: "diagonal", 1 + sign(w) (w* - w) / |w|, or "identity", which takes w* - w for a constant.
        forward_noise: eta, standard deviation of the noise in the cross entropy as a share of |w|.
        project: put every iterate back into the box; as published they may overshoot by ``init_noise``.
        only: patterns of the names of the parameters that move, see :func:`stalwart.sets.relative.select_parameters`.
    """

    beta: Number = 0.25
    zeta: Number = 0.1
    steps: int = 10
    init_noise: Number = 1e-3
    jacobian: Jacobian = "diagonal"
    forward_noise: Number = 0.0
    project: bool = True
    only: str | tuple[str, ...] = "*weight"

    def __post_init__(self) -> None:
        require(self.beta > 0, f"beta must be positive, got {self.beta}.")
        require(0 < self.zeta <= 1, f"zeta must lie in (0, 1], got {self.zeta}; write 10 % as 0.1.")
        require(self.steps >= 1, f"steps must be at least 1, got {self.steps}.")
        require(
            self.init_noise > 0, f"init_noise must be positive, got {self.init_noise}: the divergence is flat at w."
        )
        require(self.forward_noise >= 0, f"forward_noise must be at least 0, got {self.forward_noise}.")

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the whole loss and the logits [B, K] of its cross entropy."""
        weights = RelativeBox(self.zeta, self.only).select(model)
        varied = (
            shifted(weights, noisy(_still(weights), self.forward_noise, moment.generator(x, "forward-noise")))
            if self.forward_noise
            else {}
        )
        # Before all others, since this pass alone moves the statistics of batch normalisation.
        logits = run_with(model, varied, x)
        seed = derive(moment.seed, "weight-kl")

        plain = all(type(module) in _PLAIN for module in model.modules())
        alike = plain and not self.forward_noise
        with contextlib.nullcontext() if alike else evaluating(model):
            net = lean_copy(model) if plain and not _is_watched(model) else model

            def log_p(moved: Mapping[str, Tensor]) -> Tensor:
                # The same draws at every call, or differences between them would count as divergence.
                with isolated(seed, per_rank=True), noise(net, seed=seed):
                    return run_with(net, moved, x).log_softmax(-1)

            clean = logits.log_softmax(-1) if alike else log_p({})
            moved = self.climb(_still(weights), clean.detach(), log_p, moment.generator(x, "weights"))
            divergence = kl_divergence(clean, log_p(attached(weights, moved, self.jacobian))).mean()
        return F.cross_entropy(logits, y) + self.beta * divergence, logits

    def climb(
        self,
        weights: Mapping[str, Tensor],
        clean: Tensor,
        log_p: Callable[[Mapping[str, Tensor]], Tensor],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return w* by name, the last iterate of the ascent.

        Args:
            weights: w by name, without gradients.
            clean: log probabilities [B, K] at w, a constant.
            log_p: log probabilities [B, K] at given weights.
            generator: the source of the start's noise.
        """
        box = RelativeBox(self.zeta, self.only)
        moved = started(weights, box, self.init_noise, self.project, generator)
        for _ in range(self.steps):
            slopes = slopes_of(lambda at: kl_divergence(clean, log_p(at)).mean(), moved)
            moved = stepped(weights, moved, slopes, box, self.steps, self.project)
        return moved


def _is_watched(model: nn.Module) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _still(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in weights.items()}
