"""A few of a network's time steps at a time: what layers kept from the steps before is given, and handed back.

Inside :func:`period` a :class:`stalwart.spiking.SpikingNetwork` runs the steps first, ..., last - 1 of its T and returns the
mean over all steps so far. Gradients stay in the period: what comes from before is a constant.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor, nn

from stalwart.core.numbers import require

Kept = dict[nn.Module, Tensor]


@dataclass(frozen=True)
class Period:
    """Which steps run, what layers kept from before them, and what they keep after them.

    Attributes:
        first, last: the steps first, ..., last - 1, counted from 0.
        before, after: membranes of neurons, masks of dropout, sums of outputs, by layer.
    """

    first: int
    last: int
    before: Kept
    after: Kept = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """How many steps run."""
        return self.last - self.first


_PERIOD: ContextVar[Period | None] = ContextVar("period", default=None)


@contextlib.contextmanager
def period(first: int, last: int, before: Kept) -> Iterator[Kept]:
    """Let spiking networks run their steps first, ..., last - 1 only inside the block.

    Args:
        first: number of the first step, from 0.
        last: number behind the last step.
        before: what the period before handed back; empty for the first.

    Yields:
        what layers keep, to be given to the next period; it fills as the network runs once.

    Raises:
        UsageError: no step at all.
    """
    require(0 <= first < last, f"a period needs a step at least, got steps {first} to {last - 1}.")
    own = Period(first, last, before)
    token = _PERIOD.set(own)
    try:
        yield own.after
    finally:
        _PERIOD.reset(token)


def current_period() -> Period | None:
    """Return the period that runs, if not all steps do."""
    return _PERIOD.get()
