"""SABR: bounds of small boxes around adversarial examples."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stalwart.core.numbers import Number, require
from stalwart.objectives.base import Moment
from stalwart.objectives.bounds_adapter import CleanPass
from stalwart.objectives.certified import Attacking, Step, margin_loss
from stalwart.sets import Linf


@dataclass(frozen=True, kw_only=True)
class SmallBoxes(Attacking):
    """Base record of training on a box of half-width ``subset`` * eps around an adversarial example inside the eps box.

    Attributes:
        subset: λ, the small box's size relative to the whole.
    """

    subset: Number = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.subset <= 1, f"subset must lie in (0, 1], got {self.subset}.")

    def region(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the small boxes, cut to [0, 1]; their centres are moved so that they stay inside the eps box."""
        size = self.subset * eps
        centre = self.attack(model, x, y, eps, moment).clamp(x - (eps - size), x + (eps - size))
        lower, upper = Linf(size).bounds(centre)
        whole = Linf(eps).bounds(x)  # rounding must not lead out of it
        return torch.maximum(lower, whole[0]), torch.minimum(upper, whole[1])


@dataclass(frozen=True, kw_only=True)
class SABR(SmallBoxes):
    """CE(-lb, y) with the interval bounds of a small box around an adversarial example.

    Source: Müller, Eckert, Fischer, Vechev, "Certified training: small boxes are all you need", ICLR 2023
    (arXiv 2210.04871), section 3.
    """

    def step(self, model: nn.Module, x: Tensor, y: Tensor, eps: float, moment: Moment) -> Step:
        """Return the mean loss of the small boxes' bounds."""
        lower, upper = self.region(model, x, y, eps, moment)
        clean = CleanPass(model, x)
        box = clean.box(lower, upper)
        return Step(margin_loss(box.margins(y)).mean(), clean.logits, (box,))
