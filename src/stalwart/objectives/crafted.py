"""Training on what any registered attack finds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import Tensor, nn

from stalwart.attacks import Attack
from stalwart.attacks.table import ATTACKS
from stalwart.core.numbers import Number, require
from stalwart.core.registry import build, lookup
from stalwart.objectives.base import Moment
from stalwart.objectives.wrapped import Wrapped
from stalwart.sets import ThreatSet
from stalwart.sets.table import SETS


@dataclass(frozen=True, kw_only=True)
class Crafted(Wrapped):
    """The base loss on inputs that a registered attack finds, in the place of those that the base would craft.

    With ``base: pgd-at`` it is the cross entropy of them, with ``base: trades`` the clean cross entropy and their
    divergence. SpikeFool's examples are the defence of Büchel et al. 2022 (arXiv 2110.02929).

    Attributes:
        base: registered name of an objective that trains on crafted inputs.
        options: its hyper-parameters; its own attack's have no effect.
        attack: registered name of the attack.
        attack_options: its hyper-parameters.
        norm: the threat set.
        eps: its radius; a number of places for "l0" and "events".
    """

    base: str = "trades"
    attack: str = "pgd"
    attack_options: Mapping[str, Any] = field(default_factory=dict)
    norm: Literal["linf", "l2", "l1", "l0", "events"] = "linf"
    eps: Number = 8 / 255

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            issubclass(lookup("attack", ATTACKS, self.attack), Attack),
            f"'{self.attack}' attacks weights; take one that attacks inputs, such as 'pgd'.",
        )
        _ = self.chosen, self.within

    @cached_property
    def chosen(self) -> Attack:
        """The attack."""
        found: Attack = build("attack", ATTACKS, self.attack, self.attack_options)
        return found

    @property
    def within(self) -> ThreatSet:
        """The threat set that is trained against."""
        found: ThreatSet = lookup("threat set", SETS, self.norm)(self.eps)
        return found

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Attack the network in evaluation mode; a sample that it decides wrongly already may stay as it is."""
        return self.chosen(model, x, y, within=self.within, seed=moment.seed).x_adv.detach()
