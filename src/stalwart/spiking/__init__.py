"""Spiking neurons: dynamics, surrogate gradients, encoders, networks. Tensors are time-first, [T, B, ...]."""

from stalwart.spiking.encoders import ENCODERS, Direct, EventFrames, Gaussian, Latency, Poisson, Quantised
from stalwart.spiking.lif import lif
from stalwart.spiking.network import InTime, SharedDropout, SpikingNetwork, set_steps, with_neurons
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
    "Quantised",
    "SharedDropout",
    "SpikingNetwork",
    "Surrogate",
    "find_surrogate",
    "gradients",
    "lif",
    "neurons",
    "set_steps",
    "with_neurons",
]
