"""What attacks share that run another registered attack, on another view of the model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stalwart.attacks.base import Attack
from stalwart.core.registry import build


@dataclass(frozen=True, kw_only=True)
class AroundAttack(Attack):
    """Base record of attacks around another one, which takes their draws and their average unless its options say otherwise.

    Attributes:
        attack: registered name of the attack to run.
        options: its hyper-parameters.
    """

    attack: str = "pgd"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.inner()

    def inner(self) -> Attack:
        """Return the attack to run.

        Raises:
            UsageError: there is no such attack, or it has no such hyper-parameter.
        """
        from stalwart.attacks.table import ATTACKS

        given = {"eot": self.eot, "average": self.average, **self.options}
        found: Attack = build("attack", ATTACKS, self.attack, given)
        return found
