"""Weight-covariance alignment: reward noise that the head's weights feel."""

from dataclasses import dataclass

from torch import Tensor, nn

from stalwart.core.errors import UsageError
from stalwart.core.numbers import Number, require
from stalwart.objectives.wrapped import Wrapped
from stalwart.stochastic import WCAHead


def wca_head(model: nn.Module) -> WCAHead:
    """Return the model's WCA head.

    Raises:
        UsageError: it has none.
    """
    for module in model.modules():
        if isinstance(module, WCAHead):
            return module
    raise UsageError("the objective 'wca' needs a model with a WCA head; give the model the noise {name: wca}.")


@dataclass(frozen=True, kw_only=True)
class WCA(Wrapped):
    """Base loss - weight * R_WCA, where R_WCA is the alignment of the WCA head (sum-of-logs or log-of-sum form).

    Train it with weight decay on the head and its noise: without it, W and Sigma grow without bound.
    Source: Eustratiadis et al., ICML 2021 (arXiv 2010.08852); see :class:`stalwart.stochastic.WCAHead`.

    Attributes:
        weight: coefficient of the alignment.
    """

    weight: Number = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.weight >= 0, f"weight must be at least 0, got {self.weight}.")

    def penalty(self, model: nn.Module) -> Tensor | float:
        """Return minus the weighted alignment, plus the base's own penalty."""
        return self.inner.penalty(model) - self.weight * wca_head(model).alignment()
