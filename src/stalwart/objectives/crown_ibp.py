"""CROWN-IBP and CROWN-LBP: a backward walk for the margins over cheap intermediate bounds."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stalwart.bounds.methods import margin_rows
from stalwart.core.numbers import Number
from stalwart.objectives.bounds_adapter import Box, BoxMethod
from stalwart.objectives.certified import margin_loss
from stalwart.objectives.ibp import IBP
from stalwart.objectives.schedules import Tied

_NEGLIGIBLE = 1e-5


@dataclass(frozen=True, kw_only=True)
class CrownIBP(IBP):
    """IBP's loss with lb = (1 - beta) lb_IBP + beta lb_CROWN-IBP, the walk with adaptive lines.

    beta goes from ``beta_start`` to ``beta_end`` as eps grows; below 1e-5 the walk is left out.
    Source: Zhang et al., "Towards stable and efficient training of verifiably robust neural networks", ICLR 2020
    (arXiv 1906.06316), equation 11.

    Attributes:
        beta_start, beta_end: weight of the walk's bounds at eps 0 and at the final eps.
        fusion: bound the scalar Σ_j exp(z_j - z_y) and take its log, which walks one row instead of K - 1 (Xu et al.,
            "Automatic perturbation analysis for scalable certified robustness and beyond", NeurIPS 2020, section 3.3).
    """

    beta_start: Number = 1.0
    beta_end: Number = 0.0
    fusion: bool = False
    method: ClassVar[BoxMethod] = "crown-ibp"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.beta

    @property
    def beta(self) -> Tied:
        """The weight of the walk's bounds over eps / eps_max."""
        return Tied(start=self.beta_start, end=self.beta_end)

    def robust_loss(self, box: Box, y: Tensor, share: float) -> Tensor:
        """Return the mean loss of the mixed bounds."""
        beta, margins = self.beta.at(share), box.margins(y)
        if beta < _NEGLIGIBLE:
            return margin_loss(margins).mean()
        if self.fusion:
            return fused_loss(box, y, margins, beta, self.method).mean()
        return margin_loss((1 - beta) * margins + beta * box.margins(y, self.method)).mean()


def fused_loss(box: Box, y: Tensor, margins: Tensor, beta: float, method: BoxMethod) -> Tensor:
    """Return the log [B] of an upper bound of Σ_j exp(z_j - z_y), j = y included, from one walked row.

    exp lies below its chord s_j m + t_j on the interval of m = z_j - z_y, so that the sum lies below Σ_j t_j plus the upper
    bound of the linear function Σ_j s_j (z_j - z_y). All is scaled by the largest exp, which cancels in the log.

    Args:
        box: the network's box.
        y: labels [B].
        margins: interval bounds [B, K - 1] of z_y - z_j.
        beta: weight of the walked bound; 1 - beta is that of Σ_j exp(-margins).
        method: how the row is walked.
    """
    rows = margin_rows(y, box.output.lower.shape[1]).to(margins)
    high = -margins
    low = torch.minimum(box.rows(-rows), high)
    largest = high.detach().amax(1, keepdim=True).clamp_min(0)
    top, width = (high - largest).exp(), high - low
    # (1 - exp(-w)) / w tends to 1 as w does to 0, where the chord is the tangent.
    slope = top * torch.where(width > 1e-6, -torch.expm1(-width) / width.clamp_min(1e-6), 1 - width / 2)
    walked = (top - slope * high).sum(1) - box.rows((slope.unsqueeze(-1) * rows).sum(1, keepdim=True), method)[:, 0]
    mixed = (1 - beta) * top.sum(1) + beta * walked
    return largest[:, 0] + ((-largest[:, 0]).exp() + mixed).log()


@dataclass(frozen=True, kw_only=True)
class CrownLBP(CrownIBP):
    """CROWN-IBP's loss with intermediate intervals by forward linear bounds; their memory grows with the input's size.

    Source: Lyu et al., CVPR 2021 (arXiv 2104.00447), sections 3.2 and 3.3.
    """

    method: ClassVar[BoxMethod] = "crown-lbp"
