"""Natural training: mean cross entropy on clean inputs."""

from dataclasses import dataclass

from stalwart.objectives.base import Objective


@dataclass(frozen=True, kw_only=True)
class Natural(Objective):
    """Mean cross entropy on clean inputs, CE(f(x), y)."""
