"""Noisy linear heads: Gaussian noise on the penultimate features, with fixed or learned covariance.

    h(x) = W (f(x) + z) + b,    z ~ N(0, Sigma),  Sigma = L L^T

Source: Eustratiadis, Gouk, Li, Hospedales, "Weight-covariance alignment for adversarially robust neural networks",
ICML 2021 (arXiv 2010.08852). Unlike the authors' code, noise is drawn per sample and the diagonal of L stays positive.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.core.errors import UsageError
from stalwart.core.noise import NoiseLayer
from stalwart.core.random import normal

Covariance = Literal["full", "diagonal", "isotropic"]
_FLOOR = 1e-6


class NoisyHead(NoiseLayer):
    """A linear layer whose input carries Gaussian noise with covariance factor :meth:`factor`."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def factor(self) -> Tensor:
        """Return L [D, D] with Sigma = L L^T."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, D] to logits [B, K] with one noise draw a sample."""
        return self.draw(features, 1)[0]

    def draw(self, features: Tensor, draws: int) -> Tensor:
        """Map features [B, D] to logits of ``draws`` independent noise draws, [draws, B, K].

        W (f + L e) + b is computed as (W f + b) + (W L) e: the backbone and the clean logits are paid for once.
        """
        mean = self.linear(features)
        if self.mode == "off":
            return mean.expand(draws, *mean.shape)
        # Fixed noise is one frozen network: the same draw for every sample, whatever batch it comes in.
        shape = (draws, 1 if self.mode == "fixed" else len(features), features.shape[1])
        e = normal(shape, self.stream(features.device), features, batch_axis=None if self.mode == "fixed" else 1)
        return mean + F.linear(e, (self.linear.weight @ self.factor()).to(features.dtype))

    def logit_covariance(self) -> Tensor:
        """Return W Sigma W^T [K, K], the exact covariance of the logits given the features."""
        root = self.linear.weight @ self.factor()
        return root @ root.T


class GaussianHead(NoisyHead):
    """Fixed noise N(0, std^2 I): the baseline that learns nothing about its noise."""

    std: Tensor

    def __init__(self, features: int, classes: int, std: float = 1.0) -> None:
        super().__init__(features, classes)
        if not std > 0:
            raise UsageError(f"the noise's std must be positive, got {std}.")
        self.register_buffer("std", torch.tensor(float(std)))

    def factor(self) -> Tensor:
        """Return std * I."""
        return self.std * torch.eye(self.linear.in_features).to(self.linear.weight)


class WCAHead(NoisyHead):
    """Noise with a learned covariance, aligned with the head's weights by :meth:`regulariser`.

    Args:
        features: D, width of the features.
        classes: K, number of logits.
        covariance: "full" (L lower triangular), "diagonal" or "isotropic" (one scale for all).
        regulariser: "sumlog", the paper's form sum_i ln(w_i^T Sigma w_i), or "logsum", the authors' code's form
            ln sum_i w_i^T Sigma w_i, which common-mode noise satisfies without moving any decision.
        centred: use w_i minus the mean of all rows, so that noise shared by all logits counts for nothing.
        init: "half" starts near L = 0.5 I; "uniform" is the authors' lower triangle of U(0, 1).

    The diagonal of L is softplus(raw) + 1e-6, so Sigma is positive definite whatever the optimiser does.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        covariance: Covariance = "full",
        regulariser: Literal["sumlog", "logsum"] = "sumlog",
        centred: bool = False,
        init: Literal["half", "uniform"] = "half",
    ) -> None:
        super().__init__(features, classes)
        self.covariance, self.form, self.centred = covariance, regulariser, centred
        width = 1 if covariance == "isotropic" else features
        # torch.rand and torch.randn here initialise parameters, as nn.Linear does; no noise is drawn from them.
        diagonal = torch.rand(width).clamp_min(1e-3) if init == "uniform" else torch.full((width,), 0.5)
        self.raw_diagonal = nn.Parameter(torch.log(torch.expm1(diagonal)))
        if covariance == "full":
            square = torch.rand(features, features) if init == "uniform" else 0.1 * torch.randn(features, features)
            self.lower = nn.Parameter(square.tril(-1))

    def factor(self) -> Tensor:
        """Return L [D, D], lower triangular with a positive diagonal."""
        diagonal = F.softplus(self.raw_diagonal) + _FLOOR
        if self.covariance == "full":
            return self.lower.tril(-1) + torch.diag(diagonal)
        return torch.diag(diagonal.expand(self.linear.in_features))

    def alignment(self) -> Tensor:
        """Return the regulariser R_WCA (a scalar to be maximised): sum_i ln(w_i^T Sigma w_i), or ln of the sum."""
        weight = self.linear.weight
        if self.centred:
            weight = weight - weight.mean(0)
        # In full precision under autocast too: the logarithm of a small variance has no digits to spare.
        with torch.autocast(weight.device.type, enabled=False):
            variance = (weight @ self.factor()).square().sum(1)
        return (variance + 1e-12).log().sum() if self.form == "sumlog" else (variance.sum() + 1e-12).log()


@torch.no_grad()
def noise_statistics(head: NoisyHead) -> dict[str, float]:
    """Describe the noise as the decision sees it.

    Returns ``marginal_std``, the root mean variance of a logit; ``pairwise_std``, the root mean variance of a difference
    of two logits; and ``r``, mean pairwise variance over twice the mean marginal variance. A small r means that the noise
    is common to all logits and changes no decision: a deterministic net in disguise. All are averaged in the variance.
    """
    covariance = head.logit_covariance().double()
    classes = len(covariance)
    marginal = covariance.diagonal()
    pairwise = marginal[:, None] + marginal[None, :] - 2 * covariance
    mean_pairwise = float(pairwise.sum()) / (classes * (classes - 1))
    mean_marginal = float(marginal.mean())
    return {
        "marginal_std": math.sqrt(max(mean_marginal, 0.0)),
        "pairwise_std": math.sqrt(max(mean_pairwise, 0.0)),
        "r": mean_pairwise / (2 * mean_marginal) if mean_marginal > 0 else 0.0,
        "weight_norm": float(head.linear.weight.norm()),
    }
