"""Models of devices that store and read a network's parameters with faults, and Monte-Carlo over chips."""

from stalwart.hardware.base import STAGES, Device, Fault, Hardware
from stalwart.hardware.bit_flips import BitFlips
from stalwart.hardware.chip import Chip
from stalwart.hardware.converters import ActivationQuantise, OutputNoise, layer_ranges
from stalwart.hardware.mismatch import Mismatch
from stalwart.hardware.monte_carlo import accuracies
from stalwart.hardware.neurons import MembraneNoise, NeuronMismatch
from stalwart.hardware.pcm import PCM
from stalwart.hardware.quantise import Quantise
from stalwart.hardware.statistics import Summary, summarise
from stalwart.hardware.stuck import StuckAt
from stalwart.hardware.table import FAULTS

__all__ = [
    "FAULTS",
    "PCM",
    "STAGES",
    "ActivationQuantise",
    "BitFlips",
    "Chip",
    "Device",
    "Fault",
    "Hardware",
    "MembraneNoise",
    "Mismatch",
    "NeuronMismatch",
    "OutputNoise",
    "Quantise",
    "StuckAt",
    "Summary",
    "accuracies",
    "layer_ranges",
    "summarise",
]
