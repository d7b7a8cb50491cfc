"""Interval bound propagation."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.core.numbers import Number
from stalwart.objectives.base import Moment
from stalwart.objectives.bounds_adapter import Box, CleanPass
from stalwart.objectives.certified import Certified, Step, margin_loss
from stalwart.objectives.schedules import Tied


@dataclass(frozen=True, kw_only=True)
class IBP(Certified):
    """kappa CE(z(x), y) + (1 - kappa) CE(-lb, y), lb the interval bounds of the margins z_y - z_j.

    kappa goes from ``kappa_start`` to ``kappa_end`` as eps grows: 1 to 0.5, 1 to 0, or 0 throughout.
    Source: Gowal et al., "On the effectiveness of interval bound propagation for training verifiably robust models", 2018,
    equation 12.

    Attributes:
        kappa_start, kappa_end: weight of the clean loss at eps 0 and at the final eps.
    """

    kappa_start: Number = 1.0
    kappa_end: Number = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.kappa

    @property
    def kappa(self) -> Tied:
        """The weight of the clean loss over eps / eps_max."""
        return Tied(start=self.kappa_start, end=self.kappa_end)

    def robust_loss(self, box: Box, y: Tensor, share: float) -> Tensor:
        """Return the mean loss of the bounds; ``share`` is eps / eps_max."""
        return margin_loss(box.margins(y)).mean()

    def step(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, moment: Moment) -> Step:
        """Return the mixture of clean and robust loss."""
        clean, share = CleanPass(model, x), eps / self.eps
        box = clean.box(*self.region(model, x, y, eps, moment))
        kappa = self.kappa.at(share)
        loss = (1 - kappa) * self.robust_loss(box, y, share)
        if kappa > 0:
            loss = loss + kappa * F.cross_entropy(clean.logits, y)
        return Step(loss, clean.logits, (box,))
