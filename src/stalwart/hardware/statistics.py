"""What the accuracies of many chips come to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.core.errors import InputError
from stalwart.core.numbers import require
from stalwart.core.random import generator


@dataclass(frozen=True)
class Summary:
    """Accuracies of chips, each a share in [0, 1].

    Attributes:
        chips: how many.
        mean: over the chips.
        std: over the chips, with n - 1; 0 for one chip.
        minimum: the worst chip.
        low: the 5th percentile, linear between chips.
        interval: the 95 % confidence interval of the mean, by bootstrap over the chips (percentiles).
        baseline: the accuracy without the device; None where it is not known.
    """

    chips: int
    mean: float
    std: float
    minimum: float
    low: float
    interval: tuple[float, float]
    baseline: float | None = None

    @property
    def drop(self) -> float | None:
        """What the device costs on average: baseline - mean; None without a baseline."""
        return None if self.baseline is None else self.baseline - self.mean

    @property
    def worst_drop(self) -> float | None:
        """What the worst chip costs: baseline - minimum; None without a baseline."""
        return None if self.baseline is None else self.baseline - self.minimum


def summarise(accuracies: Tensor, baseline: float | None = None, seed: int = 0, resamples: int = 10_000) -> Summary:
    """Return the summary of accuracies [chips].

    Args:
        accuracies: shares in [0, 1], one a chip.
        baseline: the accuracy of the model itself on the same inputs.
        seed: of the bootstrap.
        resamples: how often chips are drawn again.

    Raises:
        InputError: no accuracies, or impossible ones.
        UsageError: resamples below 1.

    Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, section 13.3.

    Example:
        >>> summarise(torch.tensor([0.5, 0.75]), baseline=1.0).drop
        0.375
    """
    require(resamples >= 1, f"resamples must be at least 1, got {resamples}.")
    values = accuracies.detach().double().cpu()
    if values.dim() != 1 or not len(values):
        raise InputError(f"accuracies must have shape [chips] with at least one chip, got {list(values.shape)}.")
    for value in (values, torch.tensor([0.0 if baseline is None else baseline])):
        if not bool(((value >= 0) & (value <= 1)).all()):
            raise InputError(f"accuracies are shares in [0, 1], got {value.min():g} to {value.max():g}.")
    count = len(values)
    drawn = torch.randint(0, count, (resamples, count), generator=generator(seed, "bootstrap"))
    edges = values[drawn].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Summary(
        chips=count,
        mean=float(values.mean()),
        std=float(values.std()) if count > 1 else 0.0,
        minimum=float(values.min()),
        low=float(values.quantile(0.05)),
        interval=(float(edges[0]), float(edges[1])),
        baseline=baseline,
    )
