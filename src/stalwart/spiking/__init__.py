"""Spiking neurons: dynamics, surrogate gradients, encoders, networks. Tensors are time-first, [T, B, ...]."""

from stalwart.spiking.encoders import ENCODERS, Direct, EventFrames, Gaussian, Latency, Poisson
from stalwart.spiking.initialise import fluctuation_init, weight_statistics
from stalwart.spiking.lif import lif
from stalwart.spiking.network import InTime, SharedDropout, SpikingNetwork, with_neurons
from stalwart.spiking.neurons import LIF, gradients, neurons
from stalwart.spiking.surrogates import SURROGATES, Surrogate, find_surrogate

__all__ = [
    "ENCODERS",
    "LIF",
    "SURROGATES",
    "Direct",
    "EventFrames",
    "Gaussian",
    "InTime",
    "Latency",
    "Poisson",
    "SharedDropout",
    "SpikingNetwork",
    "Surrogate",
    "find_surrogate",
    "fluctuation_init",
    "gradients",
    "lif",
    "neurons",
    "weight_statistics",
    "with_neurons",
]
