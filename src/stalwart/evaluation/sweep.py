"""The devices that a network is put on, and at which levels."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from stalwart.hardware import (
    PCM,
    ActivationQuantise,
    BitFlips,
    Hardware,
    MembraneNoise,
    Mismatch,
    NeuronMismatch,
    OutputNoise,
    Quantise,
    StuckAt,
)
from stalwart.spiking import neurons

_DAY = 24 * 3600.0
_TIMES = (25.0, 3600.0, _DAY, 30 * _DAY, 365 * _DAY)
_BITS = 8


Unit = Literal["share", "seconds", "bits", "position"]


@dataclass(frozen=True)
class Level:
    """One device of the sweep.

    Attributes:
        block: of devices that grow worse.
        level: in the block's unit.
        device: the fault or chain of faults.
        fixed: whether all chips are alike.
        unit: what a level counts: a "share" in [0, 1], "seconds", "bits", or the "position" of a bit, 0 the lowest.
    """

    block: str
    level: float
    device: Hardware
    fixed: bool = False
    unit: Unit = "share"


def sweep(model: nn.Module | None = None) -> Iterator[Level]:
    """Yield every device, in the order of a report; those of neurons where the model has some."""
    yield from _weights()
    yield from _cells()
    yield from _reads()
    if model is not None and neurons(model):
        yield from _neurons()


def _weights() -> Iterator[Level]:
    for level in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7):
        yield Level("mismatch", level, Mismatch(level))
    for level in (0.02, 0.05, 0.1):
        yield Level("mismatch as a share of the largest weight", level, Mismatch(level, "range"))
    for level in (0.1, 0.3):
        yield Level("log-normal mismatch", level, Mismatch(level, "log-normal"))
    for bits in (8, 6, 4, 3, 2):
        yield Level("bits of weights", float(bits), Quantise(bits), fixed=True, unit="bits")
    for bits in (8, 6, 4):
        yield Level("bits of converters", float(bits), ActivationQuantise(bits), fixed=True, unit="bits")
    for bits in (8, 6, 4):
        yield Level("bits of both", float(bits), Quantise(bits) | ActivationQuantise(bits), fixed=True, unit="bits")
    for bits in (8, 4):
        yield Level("bits of weights, then mismatch of 10 %", float(bits), Quantise(bits) | Mismatch(0.1), unit="bits")


def _cells() -> Iterator[Level]:
    for rate in (1e-5, 1e-4, 1e-3, 1e-2, 5e-2):
        yield Level("bit flips", rate, BitFlips(rate, _BITS))
    for position in range(_BITS):
        yield Level(
            "flips of 1 % of the bits at position", float(position), BitFlips(0.01, _BITS, position), unit="position"
        )
    for share in (0.01, 0.05, 0.1):
        yield Level("cells stuck at zero", share, StuckAt(share))
    for share in (0.001, 0.01):
        yield Level("cells stuck at the largest weight", share, StuckAt(share, "max"))
    for share in (0.001, 0.01):
        yield Level("cells stuck at the smallest weight", share, StuckAt(share, "min"))
    for share in (0.01, 0.05):
        yield Level("dead rows", share, StuckAt(share, whole="row"))
    for share in (0.01, 0.05):
        yield Level("dead columns", share, StuckAt(share, whole="column"))


def _reads() -> Iterator[Level]:
    for seconds in _TIMES:
        yield Level("phase-change memory, compensated", seconds, PCM(seconds), unit="seconds")
    for seconds in _TIMES:
        yield Level("phase-change memory, raw", seconds, PCM(seconds, compensate=False), unit="seconds")
    yield Level("phase-change memory, compensated, read without noise", _DAY, PCM(_DAY, read=False), unit="seconds")
    for level in (0.02, 0.05, 0.1):
        yield Level("noise on outputs", level, OutputNoise(level))


def _neurons() -> Iterator[Level]:
    for level in (0.1, 0.3, 0.7):
        yield Level("thresholds of neurons", level, NeuronMismatch(level, "threshold"))
    for level in (0.1, 0.3, 0.7):
        yield Level("time constants of neurons", level, NeuronMismatch(level, "tau"))
    for level in (0.02, 0.1, 0.3):
        yield Level("offset currents of neurons", level, NeuronMismatch(level, "bias"))
    for level in (0.02, 0.1, 0.3):
        yield Level("noise on membranes", level, MembraneNoise(level))
