"""The kinds of noise a model can be built with: one line each, and their records."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from stalwart.core.numbers import Number, require
from stalwart.stochastic.heads import Covariance, GaussianHead, WCAHead
from stalwart.stochastic.pni import inject

NOISES: dict[str, str] = {
    "gaussian": "stalwart.stochastic.table:GaussianNoise",
    "pni": "stalwart.stochastic.table:PNINoise",
    "wca": "stalwart.stochastic.table:WCANoise",
}


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Base record: a noisy head to build the model with, or a change to the finished model."""

    @property
    def head(self) -> Callable[[int, int], nn.Module] | None:
        """The head (D, K) -> module, or None for a plain linear one."""
        return None

    def apply(self, model: nn.Module) -> nn.Module:
        """Return the finished model with its noise."""
        return model


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Noise):
    """Fixed noise N(0, std^2 I) on the penultimate features; see :class:`GaussianHead`."""

    std: Number = 1.0

    @property
    def head(self) -> Callable[[int, int], nn.Module]:
        """A :class:`GaussianHead`."""
        return lambda features, classes: GaussianHead(features, classes, self.std)


@dataclass(frozen=True, kw_only=True)
class WCANoise(Noise):
    """Noise of learned covariance on the penultimate features; see :class:`WCAHead`."""

    covariance: Covariance = "full"
    regulariser: Literal["sumlog", "logsum"] = "sumlog"
    centred: bool = False
    init: Literal["half", "uniform"] = "half"

    @property
    def head(self) -> Callable[[int, int], nn.Module]:
        """A :class:`WCAHead`."""
        return lambda features, classes: WCAHead(
            features, classes, self.covariance, self.regulariser, self.centred, self.init
        )


@dataclass(frozen=True, kw_only=True)
class PNINoise(Noise):
    """Noise of trained strength on every weight; see :func:`stalwart.stochastic.inject`."""

    alpha: Number = 0.25

    def __post_init__(self) -> None:
        require(self.alpha >= 0, f"alpha must be at least 0, got {self.alpha}.")

    def apply(self, model: nn.Module) -> nn.Module:
        """Put the noise on all linear and convolutional layers."""
        return inject(model, self.alpha)
