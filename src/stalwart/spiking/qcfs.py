"""An ANN's activation that takes the few values a neuron's rate can take: quantised, clipped, floored, shifted by a half."""

import dataclasses

import torch
from torch import Tensor, nn

from stalwart.core.errors import InputError
from stalwart.core.layers import put
from stalwart.core.numbers import Number, require

_LEAST_HEIGHT = 1e-3


class QCFS(nn.Module):
    """a = λ floor(L clip(z / λ, 0, 1) + 1/2) / L, with the gradient of the identity through the floor.

    Integrate-and-fire neurons of threshold λ that start from λ / 2, reset by subtraction and whose spikes are worth λ give
    the same output on constant currents in T = L steps, and in expectation at any T.
    Source: Bu et al., "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural networks", ICLR 2022,
    equations 11 to 14.

    Args:
        levels: L, at least 1.
        height: λ at the start, positive; trained, one a layer.

    Raises:
        UsageError: a number out of range.

    Example:
        >>> QCFS(levels=2, height=1.0)(torch.tensor([-1.0, 0.3, 0.9])).detach()
        tensor([0.0000, 0.5000, 1.0000])
    """

    def __init__(self, levels: int = 4, height: Number = 8.0) -> None:
        super().__init__()
        require(levels >= 1, f"levels must be at least 1, got {levels}.")
        require(height > 0, f"the height of an activation must be positive, got {height}.")
        self.levels = levels
        self.height = nn.Parameter(torch.tensor(float(height)))

    @property
    def worth(self) -> Tensor:
        """The λ in use: at least 1e-3."""
        return self.height.clamp_min(_LEAST_HEIGHT)

    def forward(self, z: Tensor) -> Tensor:
        """Map pre-activations [B, ...] to activations of the same shape."""
        height = self.worth
        share = (z / height).clamp(0, 1)
        level = (share.detach() * self.levels + 0.5).floor() / self.levels
        return height * (share + (level - share.detach()))

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return f"levels={self.levels}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantise:
    """How a backbone gets :class:`QCFS` in the place of its ReLUs.

    Attributes:
        levels: L, at least 1.
        height: λ at the start, positive. The authors take 8, which a short training does not bring down far enough.

    Raises:
        UsageError: a number out of range.
    """

    levels: int = 4
    height: Number = 8.0

    def __post_init__(self) -> None:
        QCFS(self.levels, self.height)

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Replace each ReLU in place and return the backbone.

        Raises:
            InputError: there is none.
        """
        found = [path for path, module in backbone.named_modules(remove_duplicate=False) if isinstance(module, nn.ReLU)]
        if not found:
            raise InputError("no ReLU module to quantise; choose an architecture of ReLUs.")
        for path in found:
            put(backbone, path, QCFS(self.levels, self.height))
        return backbone
