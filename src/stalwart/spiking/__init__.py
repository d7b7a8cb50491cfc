"""Spiking neurons: dynamics, surrogate gradients, encoders, networks. Tensors are time-first, [T, B, ...]."""

from stalwart.spiking.encoders import ENCODERS, Direct, EventFrames, Gaussian, Latency, Poisson, Quantised, make_encoder
from stalwart.spiking.first_spike import FirstSpike, first_spike_times
from stalwart.spiking.hoyer import HoyerNeuron, hoyer_measure, hoyer_threshold
from stalwart.spiking.initialise import fluctuation_init, weight_statistics
from stalwart.spiking.lif import lif
from stalwart.spiking.monitor import monitor
from stalwart.spiking.network import InTime, SharedDropout, SpikingNetwork, set_steps, spiking_networks, with_neurons
from stalwart.spiking.neurons import LIF, Neurons, gradients, neurons
from stalwart.spiking.offset import OffsetIF
from stalwart.spiking.period import period
from stalwart.spiking.qcfs import QCFS
from stalwart.spiking.rate import RateNeuron, rate_map
from stalwart.spiking.readout import Readout
from stalwart.spiking.recurrent import AdaptiveLIF, RecurrentLIF, rate_penalty
from stalwart.spiking.surrogates import SURROGATES, Surrogate, find_surrogate
from stalwart.spiking.table import NEURONS
from stalwart.spiking.vdsp import vdsp

__all__ = [
    "ENCODERS",
    "LIF",
    "NEURONS",
    "QCFS",
    "SURROGATES",
    "AdaptiveLIF",
    "Direct",
    "EventFrames",
    "FirstSpike",
    "Gaussian",
    "HoyerNeuron",
    "InTime",
    "Latency",
    "Neurons",
    "OffsetIF",
    "Poisson",
    "Quantised",
    "RateNeuron",
    "Readout",
    "RecurrentLIF",
    "SharedDropout",
    "SpikingNetwork",
    "Surrogate",
    "find_surrogate",
    "first_spike_times",
    "fluctuation_init",
    "gradients",
    "hoyer_measure",
    "hoyer_threshold",
    "lif",
    "make_encoder",
    "monitor",
    "neurons",
    "period",
    "rate_map",
    "rate_penalty",
    "set_steps",
    "spiking_networks",
    "vdsp",
    "weight_statistics",
    "with_neurons",
]
