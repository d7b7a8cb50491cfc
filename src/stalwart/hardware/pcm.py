"""Phase-change memory: weights as pairs of conductances that are programmed badly, drift and are read with noise."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stalwart.core.numbers import Number, require
from stalwart.core.random import normal
from stalwart.hardware.base import Fault, Reader
from stalwart.hardware.names import change, choose, key

MEASURED_AT = 25.0
"""The largest conductance, in microsiemens, of the devices on which the noise of programming was measured."""
READ_TIME = 250e-9
"""How long a read takes, in seconds."""
_SMALLEST = 1e-7


def programming_std(g: Tensor, g_max: float = MEASURED_AT) -> Tensor:
    """Return the standard deviation of programming, as a share of ``g_max``.

        σ_P = max(-1.1731 r² + 1.9650 r + 0.2635, 0) µS / g_max,    r = g·g_max / 25 µS

    Args:
        g: target conductances in [0, 1], as shares of ``g_max``.
        g_max: in microsiemens.
    """
    r = g * (g_max / MEASURED_AT)
    return (-1.1731 * r**2 + 1.9650 * r + 0.2635).clamp_min(0) / g_max


def drift_exponent(g: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the drift exponent ν of target conductances g in [0, 1].

    μ = clip(-0.0155 ln g + 0.0244, 0.049, 0.1),    s = clip(-0.0125 ln g - 0.0059, 0.008, 0.045)
    """
    log = g.clamp_min(_SMALLEST).log()
    return (-0.0155 * log + 0.0244).clamp(0.049, 0.1), (-0.0125 * log - 0.0059).clamp(0.008, 0.045)


def read_std(g: Tensor, seconds: float) -> Tensor:
    """Return the standard deviation of 1/f noise as a share of the conductance, for programmed conductances g in [0, 1].

    σ_R / g_D = min(0.0088 / g^0.65, 0.2)·√ln((t + t_r) / (2 t_r)),    t_r = 250 ns
    """
    grown = math.sqrt(max(0.0, math.log((seconds + READ_TIME) / (2 * READ_TIME))))
    return (0.0088 / g.clamp_min(_SMALLEST) ** 0.65).clamp_max(0.2) * grown


@dataclass(frozen=True)
class _Pairs:
    """One tensor's cells at the time of reading.

    Attributes:
        cells: conductances g⁺ and g⁻ [2, *shape], as shares of g_max.
        noise: the relative standard deviation of a read, of the same shape.
        scale: what a difference of conductances is multiplied by to give a weight, the compensation included.
    """

    cells: Tensor
    noise: Tensor
    scale: Tensor

    def read(self, source: torch.Generator) -> Tensor:
        return _weights(_noisy(self.cells, self.noise, source)) * self.scale


@dataclass(frozen=True)
class PCM(Fault):
    """Phase-change memory some time after programming, each weight a pair of cells with noise of their own.

        target:       g = |W| / max|W| on g⁺ where W > 0, on g⁻ where W < 0; the other cell is 0
        programming:  g_P = max(0, g + N(0, σ_P))                                     frozen
        drift:        g_D = g_P·((t + t0) / t0)^(-ν),  ν = |N(μ, s)| for each cell      frozen
        read:         g_R = max(0, g_D + N(0, σ_R))                                    anew at each forward pass
        weight:       W' = α·max|W|·(g⁺ - g⁻)

    The global drift compensation α = mean|y_0| / mean|y_t| of each tile compares its outputs for one-hot inputs: y_0 as
    programmed, without noise; y_t at time t, by one read of the chip. σ_P, μ and s are :func:`programming_std` and
    :func:`drift_exponent` of the target; σ_R is :func:`read_std` of what was programmed, g_P, at t + t0.

    Args:
        seconds: t, the time since programming, at least 0.
        g_max: the largest conductance, in microsiemens.
        t0: when the conductance is measured that programming aims at, in seconds.
        compensate: whether α is applied; otherwise it is 1.
        programming, drift, read: one switch for each effect.
        exponent: the same ν for all cells instead of random ones.
        tile: rows and columns of the arrays that a matrix [out, in * kernel] is cut into, each with an α of its own.
        only: see :class:`Fault`; weight matrices by default: biases are digital.

    Raises:
        UsageError: a number out of range.

    Source: Nandakumar et al., "Phase-change memory models for deep learning training and inference", ICECS 2019, and Joshi et
    al., "Accurate deep neural network inference using computational phase-change memory", 2020, with the constants of
    IBM's analog hardware kit.
    """

    seconds: Number = 25.0
    g_max: Number = MEASURED_AT
    t0: Number = 20.0
    compensate: bool = True
    programming: bool = True
    drift: bool = True
    read: bool = True
    exponent: Number | None = None
    tile: int = 256
    biases: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(
            math.isfinite(self.seconds) and self.seconds >= 0,
            f"seconds since programming must be at least 0, got {self.seconds}.",
        )
        require(self.g_max > 0, f"g_max must be positive, in microsiemens (25 for measured devices), got {self.g_max}.")
        require(self.t0 > 0, f"t0 must be positive, in seconds, got {self.t0}.")
        require(self.exponent is None or self.exponent >= 0, f"exponent must be at least 0, got {self.exponent}.")
        require(self.tile >= 1, f"a tile has at least 1 row and column, got {self.tile}.")

    @property
    def stage(self) -> str:
        """Programming."""
        return "program"

    @property
    def last_stage(self) -> str:
        """The last effect that is on."""
        return "read" if self.read else "drift"

    @property
    def must_change(self) -> bool:
        """What compensation may undo to the bit need not."""
        drifts = self.drift and self.seconds > 0 and not (self.compensate and self.exponent is not None)
        return self.programming or self.read or drifts

    def place(self, params: dict[str, Tensor], source: torch.Generator) -> tuple[dict[str, Tensor], Reader | None]:
        """Program the cells and let them drift; each read then has noise of its own."""
        names = choose(params, self.only, self.biases)
        placed: dict[object, _Pairs] = {}

        def program(weight: Tensor, stream: torch.Generator) -> Tensor:
            pairs = self._program(weight, stream)
            value = _weights(pairs.cells) * pairs.scale
            placed[key(value)] = pairs
            return value

        after = change(params, names, source, program)
        if not self.read:
            return after, None
        return after, lambda held, stream: change(
            held, names, stream, lambda weight, own: placed[key(weight)].read(own)
        )

    def _program(self, weight: Tensor, source: torch.Generator) -> _Pairs:
        largest = weight.abs().max() if weight.numel() else weight.new_zeros(())
        target = torch.stack([weight.clamp_min(0), (-weight).clamp_min(0)]) / torch.where(largest > 0, largest, 1)
        cells = target
        if self.programming:
            draw = normal(target.shape, source, target, batch_axis=None)
            cells = (target + programming_std(target, self.g_max) * draw).clamp_min(0)
        programmed = cells
        if self.drift:
            cells = cells * ((self.seconds + self.t0) / self.t0) ** -self._exponents(target, source)
        noise = read_std(programmed, self.seconds + self.t0)
        scale = largest.expand(weight.shape)
        if self.compensate:
            now = _noisy(cells, noise, source) if self.read else cells
            scale = scale * _compensation(_weights(programmed), _weights(now), self.tile)
        return _Pairs(cells, noise, scale)

    def _exponents(self, target: Tensor, source: torch.Generator) -> Tensor:
        if self.exponent is not None:
            return torch.full_like(target, self.exponent)
        mean, std = drift_exponent(target)
        return (mean + std * normal(target.shape, source, target, batch_axis=None)).abs()

    def describe(self) -> str:
        """Return the time, and which effects are on."""
        effects = {"programming noise": self.programming, "drift": self.drift, "read noise": self.read}
        on = ", ".join(name for name, there in effects.items() if there) or "no effect"
        alpha = "with" if self.compensate else "without"
        return (
            f"PCM {self.seconds:g} s after programming, g_max {self.g_max:g} µS: {on} (standard deviations of conductances), "
            f"{alpha} global drift compensation, {self._where()}"
        )


def _noisy(cells: Tensor, relative: Tensor, source: torch.Generator) -> Tensor:
    return (cells + cells * relative * normal(cells.shape, source, cells, batch_axis=None)).clamp_min(0)


def _weights(cells: Tensor) -> Tensor:
    return cells[0] - cells[1]


def _compensation(programmed: Tensor, now: Tensor, tile: int) -> Tensor:
    """Return α of each tile at each weight; one-hot inputs bring out the tile's columns, so outputs are its weights."""
    rows = programmed.shape[0] if programmed.dim() > 1 else 1
    start, later = programmed.reshape(rows, -1), now.reshape(rows, -1)
    alpha = torch.ones_like(start)
    for cut in _tiles(start.shape, tile):
        before, after = start[cut].abs().mean(), later[cut].abs().mean()
        alpha[cut] = torch.where(after > 0, before / after, 1)
    return alpha.reshape(programmed.shape)


def _tiles(shape: torch.Size, tile: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, shape[0], tile):
        for left in range(0, shape[1], tile):
            yield slice(top, top + tile), slice(left, left + tile)
