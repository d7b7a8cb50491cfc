"""What all corruptions share: a severity, its published parameters for small and for large images, and the checks."""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from stalwart.core.checks import check_images
from stalwart.core.errors import InputError
from stalwart.core.numbers import require

SEVERITIES = (1, 2, 3, 4, 5)
Scale = Literal["small", "large"]
_LARGE = 96
"""Shorter side in pixels from which the parameters of large images hold; both published sets are far from it."""


@dataclass(frozen=True)
class Corruption(abc.ABC):
    """One common corruption of images; everything random about it comes from the generator that it is given.

    Published parameters exist for images of 32 x 32 pixels (CIFAR-10-C, taken for digits too) and of 224 x 224
    (ImageNet-C). Pixels stay floats: the published files round them to 8 bits.

    Args:
        severity: 1 (mild) to 5.
        scale: whose parameters: "small", "large", or "auto" by the image: large where the shorter side has 96 pixels or more.

    Raises:
        UsageError: a severity outside 1 to 5.

    Source: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
    ICLR 2019, section 3 and appendix B; parameters as in the authors' published code.
    """

    severity: int = 3
    scale: Literal["auto", "small", "large"] = "auto"
    small: ClassVar[tuple[Any, ...]]
    large: ClassVar[tuple[Any, ...]]
    channels: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self) -> None:
        require(self.severity in SEVERITIES, f"a corruption's severity is 1 to 5, got {self.severity}.")

    def __call__(self, x: Tensor, source: torch.Generator) -> Tensor:
        """Return corrupted images [B, C, H, W] in [0, 1]; ``x`` is left as it was.

        Args:
            x: images [B, C, H, W] in [0, 1].
            source: the source of randomness, on the device of ``x``.

        Raises:
            InputError: no images in [0, 1], or a number of channels that the corruption is not made for.
        """
        require_images(x)
        if self.channels and x.shape[1] not in self.channels:
            counts = " or ".join(map(str, self.channels))
            raise InputError(
                f"the corruption '{type(self).__name__}' needs images of {counts} channels, got {x.shape[1]}; leave it out."
            )
        scale = scale_of(x) if self.scale == "auto" else self.scale
        table = self.small if scale == "small" else self.large
        return self.corrupt(x.clamp(0, 1), table[self.severity - 1], scale, source).clamp(0, 1)

    @abc.abstractmethod
    def corrupt(self, x: Tensor, level: Any, scale: Scale, source: torch.Generator) -> Tensor:
        """Return images [B, C, H, W] corrupted at a level, an entry of ``small`` or ``large``; they may leave [0, 1]."""


def scale_of(x: Tensor) -> Scale:
    """Return whose parameters images [B, C, H, W] get: "small" below 96 pixels of the shorter side, else "large"."""
    return "small" if min(x.shape[-2:]) < _LARGE else "large"


def require_images(x: Tensor) -> None:
    """Refuse what is no batch of images.

    Raises:
        InputError: not [B, C, H, W], or values outside [0, 1], NaN or no floats.
    """
    if x.dim() != 4:
        raise InputError(f"common corruptions need images [B, C, H, W], got shape {list(x.shape)}; leave them out.")
    check_images(x)
