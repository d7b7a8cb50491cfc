"""The parts that a NIR graph is a chain of, before they are nodes, and stacks of layers in order."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from stalwart.spiking import Neurons


class Scale(nn.Module):
    """x times a constant.

    Args:
        scale: of a sample's shape, or one that broadcasts against it.
    """

    scale: Tensor
    affine_map: ClassVar[bool] = True

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, ...] to the same shape."""
        return x * self.scale


class Membranes(Neurons):
    """Leaky integrators, currents [T, B, ...] to membranes u[t] = λ u[t-1] + g x[t] of the same shape; they never fire.

    Args:
        leak: λ in [0, 1].
        gain: g; both broadcast against a sample.
    """

    leak: Tensor
    gain: Tensor

    def __init__(self, leak: Tensor, gain: Tensor) -> None:
        super().__init__()
        self.register_buffer("leak", leak)
        self.register_buffer("gain", gain)
        self.backward_mode = "bptt"

    def forward(self, currents: Tensor) -> Tensor:
        """Map currents [T, B, ...] to membranes of the same shape."""
        u, out = torch.zeros_like(currents[0]), []
        for current in currents:
            u = self.leak * u + self.gain * current
            out.append(u)
        return torch.stack(out)


@dataclass
class Weights:
    """A linear layer or convolution; ``weight`` and ``bias`` are float64, ``bias`` None if there never was one."""

    path: str
    weight: Tensor
    bias: Tensor | None
    shape: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()


@dataclass
class SumPool:
    """Sums over windows."""

    path: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


@dataclass
class Flat:
    """Axes ``start`` to ``end`` of a sample as one, counted from the last, -1."""

    path: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass
class Factor:
    """A multiplication by a constant of the sample's shape."""

    path: str
    scale: Tensor


@dataclass
class Fires:
    """Neurons; leak, threshold, initial membranes of a sample's shape, float32; ``recurrent`` [N, N] without its diagonal."""

    path: str
    leak: Tensor
    threshold: Tensor
    reset: str
    initial: Tensor | None = None
    recurrent: Tensor | None = None


Part = Weights | SumPool | Flat | Factor | Fires
