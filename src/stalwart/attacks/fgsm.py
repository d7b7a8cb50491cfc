"""The fast gradient sign method: one step of the whole radius."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stalwart.attacks.ascent import ascend
from stalwart.attacks.base import Attack
from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.core.random import generator
from stalwart.sets import ThreatSet


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step of the whole radius along the steepest direction of the cross entropy.

    Source: Goodfellow, Shlens, Szegedy, ICLR 2015 (arXiv 1412.6572), section 4.

    Attributes:
        random_start: start from a random point of the set (FGSM-RS) rather than from the clean input.
    """

    random_start: bool = False
    self_contained: ClassVar[bool] = True

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Take the step; a clean input that is already misclassified is returned as it is."""
        start = within.sample(x, generator(seed, "start", device=x.device)) if self.random_start else x
        everyone = torch.arange(len(x), device=x.device)
        return ascend(oracle, Goal("ce", y), x, start, within, 1, within.scale, everyone)[0]
