"""What an attack maximises: functions of logits [..., K] and labels [...], larger where the model is more wrong."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LossName = Literal["ce", "margin", "dlr", "scaled-ce", "targeted-ce", "targeted-margin", "targeted-dlr"]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(logits)_y."""
    return logits.logsumexp(-1) - _at(logits, y)


def scaled_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """The gradient of -log softmax(z / s)_y, where s = z_(1) - z_(2) is taken for a constant; as a value, the margin loss.

    The softmax of logits whose lead is 1 is never saturated, so rounding in float32 leaves the gradient alone. With two
    classes -log softmax(z / s)_y is one number for every right answer, so the margin tells which iterate is the best.
    Source: Yu and Xu, CVPR 2023, minimising the detrimental effect of floating-point errors (MIFPE).
    """
    top = logits.topk(2, -1).values
    lead = (top[..., 0] - top[..., 1]).detach().clamp_min(1e-12)
    slope = cross_entropy(logits / lead[..., None], y)
    return margin(logits, y).detach() + (slope - slope.detach())


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y; positive where the decision is wrong. Works for any K >= 2."""
    return _without(logits, y).amax(-1) - _at(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, -(z_y - max_{j != y} z_j) / (z_(1) - z_(3)).

    Scale free, so saturated logits do not starve it of gradient. With K < 3 there is no third logit, and the margin itself
    is used. Source: Croce and Hein, ICML 2020 (arXiv 2003.01690), equation 6.
    """
    if logits.shape[-1] < 3:
        return margin(logits, y)
    top = logits.topk(3, -1).values
    return margin(logits, y) / (top[..., 0] - top[..., 2] + 1e-12)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_t - z_y; positive where the target is likelier than the true class."""
    return _at(logits, target) - _at(logits, y)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Difference of logits ratio towards a target, -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2).

    With K < 4 there is no fourth logit, and z_t - z_y itself is used. Source: Croce and Hein, ICML 2020 (arXiv 2003.01690),
    equation 7.
    """
    gap = targeted_margin(logits, y, target)
    if logits.shape[-1] < 4:
        return gap
    top = logits.topk(4, -1).values
    return gap / (top[..., 0] - (top[..., 2] + top[..., 3]) / 2 + 1e-12)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of log probabilities [..., B, K], summed over classes: [..., B]."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _at(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(-1, y.expand(logits.shape[:-1])[..., None])[..., 0]


def _without(logits: Tensor, y: Tensor) -> Tensor:
    own = F.one_hot(y, logits.shape[-1]).bool().expand(logits.shape)
    return logits.masked_fill(own, -torch.inf)


_UNTARGETED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "scaled-ce": scaled_cross_entropy,
}


@dataclass(frozen=True, eq=False)
class Goal:
    """A loss with the labels (and, for targeted losses, the targets) of the samples under attack."""

    loss: LossName
    y: Tensor
    target: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the loss [..., B] of logits [..., B, K]."""
        if self.target is None:
            return _UNTARGETED[self.loss](logits, self.y)
        if self.loss == "targeted-ce":
            return -cross_entropy(logits, self.target)
        targeted = targeted_dlr if self.loss == "targeted-dlr" else targeted_margin
        return targeted(logits, self.y, self.target)

    def broken(self, logits: Tensor) -> Tensor:
        """Tell which samples [B] are misclassified; a tie with another class counts as misclassified."""
        return ~(margin(logits, self.y) < 0)

    def select(self, index: Tensor) -> "Goal":
        """Return the goal of some of the samples."""
        return replace(self, y=self.y[index], target=None if self.target is None else self.target[index])
