"""Adversarial training that also holds together the logits which an attack moves furthest."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from stalwart.core.numbers import Number, require
from stalwart.objectives.base import Net
from stalwart.objectives.pgd_at import PGDAT


@dataclass(frozen=True, kw_only=True)
class AdvLC(PGDAT):
    """CE(f(x'), y) + weight / B times the sum of the largest tenth of |f(x) - f(x')| over batch and classes.

    Gradients pass both. Source: arXiv 2212.04985, code.

    Attributes:
        weight: λ, at least 0; 0.3 in the authors' runs.
        share: of all B K differences, those that count, in (0, 1].
    """

    weight: Number = 0.3
    share: Number = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.weight >= 0, f"weight must be at least 0, got {self.weight}.")
        require(0 < self.share <= 1, f"share must lie in (0, 1], got {self.share}.")
        require(self.clean_weight == 0, "adv-lc has no clean cross entropy; leave clean_weight.")

    def combine(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the adversarial logits."""
        logits = net(x_adv)
        moved = (net(x) - logits).abs().flatten()
        largest = moved.topk(max(1, round(self.share * len(moved)))).values
        return F.cross_entropy(logits, y) + self.weight * largest.sum() / len(y), logits
