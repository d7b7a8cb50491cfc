"""Objectives that change another one: what they leave alone goes straight to the base."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from stalwart.core.numbers import require
from stalwart.core.registry import build
from stalwart.objectives.base import Moment, Net, Objective


@dataclass(frozen=True, kw_only=True)
class Wrapped(Objective):
    """Base record of objectives around another objective.

    Attributes:
        base: registered name of the objective inside.
        options: its hyper-parameters.
    """

    base: str = "natural"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(
            type(self.inner).loss is Objective.loss,
            f"objective '{self.base}' computes its loss as a whole and cannot stand inside another one; put it outside, or "
            "use it by itself.",
        )

    @cached_property
    def inner(self) -> Objective:
        """The objective inside."""
        from stalwart.objectives.table import OBJECTIVES

        found: Objective = build("objective", OBJECTIVES, self.base, self.options)
        return found

    @property
    def watch(self) -> Callable[..., float] | None:
        """The base's watch for catastrophic overfitting, if it has one."""
        return getattr(self.inner, "watch", None)

    @property
    def fall(self) -> float:
        """The drop of watched accuracy that the base does not tolerate."""
        return float(self.inner.fall)  # type: ignore[attr-defined]

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Craft as the base does."""
        return self.inner.craft(model, x, y, moment)

    def combine(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Combine as the base does."""
        return self.inner.combine(net, x, x_adv, y)

    def penalty(self, model: nn.Module) -> Tensor | float:
        """Return the base's penalty."""
        return self.inner.penalty(model)

    def after_step(self, model: nn.Module, moment: Moment) -> None:
        """Move the parameters as the base does."""
        self.inner.after_step(model, moment)
