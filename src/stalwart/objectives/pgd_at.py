"""PGD adversarial training."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.core.numbers import Number, require
from stalwart.objectives.base import Moment, Net
from stalwart.objectives.inner import Adversarial


@dataclass(frozen=True, kw_only=True)
class PGDAT(Adversarial):
    """min E max_{x' in S(x)} CE(f(x'), y), the inner maximum by PGD from a random start.

    Source: Madry et al., ICLR 2018 (arXiv 1706.06083), equation 2.1.

    Attributes:
        clean_weight: weight of the clean cross entropy; the adversarial one has weight 1 - clean_weight.
    """

    clean_weight: Number = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.clean_weight < 1, f"clean_weight must lie in [0, 1), got {self.clean_weight}.")

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Attack the cross entropy from a random start."""
        return self.climb_cross_entropy(model, x, y, self.within.sample(x, moment.generator(x, "start")))

    def combine(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted cross entropy and the adversarial logits."""
        logits = net(x_adv)
        loss = F.cross_entropy(logits, y)
        if self.clean_weight:
            loss = (1 - self.clean_weight) * loss + self.clean_weight * F.cross_entropy(net(x), y)
        return loss, logits
