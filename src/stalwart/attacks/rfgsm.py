"""R+FGSM: a small random step before the fast gradient sign step."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stalwart.attacks.ascent import ascend
from stalwart.attacks.base import Attack
from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.core.errors import InputError
from stalwart.core.numbers import Number, require
from stalwart.core.random import generator, normal
from stalwart.sets import Linf, ThreatSet
from stalwart.sets.base import expand


@dataclass(frozen=True, kw_only=True)
class RFGSM(Attack):
    """R+FGSM in an linf ball: leave the input's own, possibly flat, neighbourhood at random before the gradient is taken.

        x' = clip(x + α sign(N(0, I)));  x'' = P(x' + (eps - α) sign(grad CE(x'))),  α = share * eps

    Source: Tramèr et al., ICLR 2018 (arXiv 1705.07204).

    Attributes:
        share: α as a share of the radius, in (0, 1); with 0 it would be "fgsm", with 1 the "noise" of a random corner.
    """

    share: Number = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.share < 1, f"share must lie in (0, 1), got {self.share}; use fgsm for 0 and noise for 1.")

    def fits(self, model: nn.Module, within: ThreatSet) -> bool:
        """Tell whether the threat set is an linf ball."""
        return isinstance(within, Linf)

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Take both steps; a sample that the random one breaks stays there.

        Raises:
            InputError: the threat set is not an linf ball.
        """
        if not isinstance(within, Linf):
            raise InputError(f"rfgsm works in linf balls, not in {within.describe()}; use fgsm or pgd there.")
        corner = normal(x.shape, generator(seed, "start", device=x.device), x).sign()
        start = within.project(x, x + self.share * expand(within.radius, x) * corner)
        everyone = torch.arange(len(x), device=x.device)
        return ascend(oracle, Goal("ce", y), x, start, within, 1, (1 - self.share) * within.radius, everyone)[0]
