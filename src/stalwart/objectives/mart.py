"""MART: misclassification-aware adversarial training."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from stalwart.attacks.losses import kl_divergence
from stalwart.core.numbers import Number, require
from stalwart.objectives.base import Moment, Net
from stalwart.objectives.inner import Adversarial


@dataclass(frozen=True, kw_only=True)
class MART(Adversarial):
    """CE(f(x'), y) - log(1.0001 - max_{k != y} p_k(x')) + weight * mean[(1 - p_y(x)) KL(p(x) || p(x'))].

    x' comes from PGD on the cross entropy, started at x + 0.001 N(0, 1).
    Source: Wang et al., ICLR 2020, equations 9 to 11; the constant 1.0001 is that of the authors' code.

    Attributes:
        weight: weight lambda of the divergence (5 in the authors' code, 4 in the robust-conversion recipes).
    """

    weight: Number = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.weight >= 0, f"weight must be at least 0, got {self.weight}.")

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Attack the cross entropy from beside the clean input."""
        return self.climb_cross_entropy(model, x, y, self.nearby(x, moment))

    def combine(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the MART loss and the adversarial logits."""
        logits = net(x_adv)
        adversarial, clean = logits.log_softmax(-1), net(x).log_softmax(-1)
        own = F.one_hot(y, logits.shape[-1]).bool()
        strongest_other = adversarial.exp().masked_fill(own, 0.0).amax(-1)
        boosted = F.nll_loss(adversarial, y) - (1.0001 - strongest_other).log().mean()
        doubt = 1 - clean.exp()[own]
        return boosted + self.weight * (doubt * kl_divergence(clean, adversarial)).mean(), logits
