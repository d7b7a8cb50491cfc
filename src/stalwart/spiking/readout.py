"""From the spikes of all steps to logits."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from stalwart.core.numbers import Number, require


class Readout(nn.Module):
    """Spikes [T, B, N] to logits [B, K] by one linear layer and what it takes of its time course.

    Args:
        inputs: N.
        classes: K, at least 2.
        kind: "rate", of the mean of spikes over time; "count", of their sum; "membrane", the mean over time of a leaky
            membrane u[t] = λ u[t-1] + W s[t] + b that never fires; "last", its value after the last step.
        leak: λ of that membrane in [0, 1].

    Raises:
        UsageError: an unknown kind, a number out of range.
    """

    kinds: ClassVar[tuple[str, ...]] = ("rate", "count", "membrane", "last")

    def __init__(self, inputs: int, classes: int, kind: str = "rate", leak: Number = 0.9) -> None:
        super().__init__()
        require(kind in self.kinds, f"unknown readout '{kind}'; known: {', '.join(self.kinds)}.")
        require(0 <= leak <= 1, f"the leak of a readout must lie in [0, 1], got {leak}.")
        require(classes >= 2, f"a readout needs at least 2 classes, got {classes}.")
        self.linear, self.kind, self.leak = nn.Linear(inputs, classes), kind, float(leak)

    def forward(self, spikes: Tensor) -> Tensor:
        """Map spikes [T, B, N] to logits [B, K]."""
        if self.kind in ("rate", "count"):
            out: Tensor = self.linear(spikes.mean(0) if self.kind == "rate" else spikes.sum(0))
            return out
        u, membranes = None, []
        for current in self.linear(spikes):
            u = current if u is None else self.leak * u + current
            membranes.append(u)
        return membranes[-1] if self.kind == "last" else torch.stack(membranes).mean(0)
