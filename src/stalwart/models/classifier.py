"""The shape of every model: normalise, backbone, head."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stalwart.core.numbers import parse_number, require
from stalwart.stochastic import draw_logits, is_random


class Normalise(nn.Module):
    """Layer 0 of a model: (x - mean) / std per channel, so that attacks and bounds work on data in [0, 1].

    Args:
        mean: one value a channel, in data units.
        std: one positive value a channel, in data units.

    Raises:
        UsageError: the lengths differ, or a std is not positive.

    Example:
        >>> Normalise([0.5], [0.25])(torch.tensor([[1.0]]))
        tensor([[2.]])
    """

    mean: Tensor
    std: Tensor
    affine_map: ClassVar[bool] = True
    """For converters: the layer's output is an affine function of its input."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        means, stds = [parse_number(one) for one in mean], [parse_number(one) for one in std]
        require(len(means) == len(stds), f"mean has {len(means)} channels but std has {len(stds)}; give one a channel.")
        require(all(one > 0 for one in stds), f"every std must be positive, got {stds}.")
        self.register_buffer("mean", torch.tensor(means))
        self.register_buffer("std", torch.tensor(stds))

    def forward(self, x: Float[Tensor, " batch channels *space"]) -> Float[Tensor, " batch channels *space"]:
        """Map inputs [B, C, ...] in data units to normalised inputs of the same shape."""
        column = (1, -1, *[1] * (x.dim() - 2))
        return (x - self.mean.reshape(column)) / self.std.reshape(column)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows; no values, so that it works on the meta device too."""
        return f"channels={len(self.mean)}"


class Classifier(nn.Sequential):
    """A network x -> head(backbone(normalise(x))) from inputs [B, C, ...] in data units to logits [B, K].

    Args:
        normalise: [B, C, ...] -> [B, C, ...], the normalisation; attacks and bounds never see its output.
        backbone: [B, C, ...] -> [B, D].
        head: [B, D] -> [B, K]; a noisy head may offer ``draw(features, draws) -> [draws, B, K]``.
    """

    normalise: nn.Module
    backbone: nn.Module
    head: nn.Module
    is_stack: ClassVar[bool] = True
    """For converters: the forward pass is that of its three parts in a row."""

    def __init__(self, normalise: nn.Module, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__(OrderedDict(normalise=normalise, backbone=backbone, head=head))

    def features(self, x: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch width"]:
        """Return the penultimate features [B, D] of inputs [B, C, ...]."""
        return self.backbone(self.normalise(x))

    def forward(self, x: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch classes"]:
        """Return the logits [B, K] of inputs [B, C, ...]."""
        return self.head(self.features(x))

    @property
    def cheap_draws(self) -> bool:
        """Whether all randomness sits in the head, so that :meth:`draw` gives many draws for one backbone pass."""
        return hasattr(self.head, "draw") and not is_random(self.backbone)

    def draw(self, x: Float[Tensor, " batch *shape"], draws: int) -> Float[Tensor, " draws batch classes"]:
        """Return the logits of ``draws`` independent noise draws, [draws, B, K].

        The backbone runs once where :attr:`cheap_draws` holds, else the whole model runs ``draws`` times.
        """
        require(draws >= 1, f"draws must be at least 1, got {draws}.")
        if self.cheap_draws:
            return self.head.draw(self.features(x), draws)  # type: ignore[operator]
        return draw_logits(self, x, draws)
