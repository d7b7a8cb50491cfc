"""Floor 1: noise layers with learned or fixed covariance, and how to switch, seed and average their noise."""

from stalwart.core.noise import NoiseLayer, is_random, noise
from stalwart.stochastic.heads import GaussianHead, NoisyHead, WCAHead
from stalwart.stochastic.pni import PNIConv2d, PNILinear, inject
from stalwart.stochastic.rules import RULES, draw_logits, passes, scores

__all__ = [
    "RULES",
    "GaussianHead",
    "NoiseLayer",
    "NoisyHead",
    "PNIConv2d",
    "PNILinear",
    "WCAHead",
    "draw_logits",
    "inject",
    "is_random",
    "noise",
    "passes",
    "scores",
]
