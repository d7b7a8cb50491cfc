"""Kinds of layers that more than one room deals with."""

from torch import nn

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers with a weight [out, ...] of which each output's row is applied to what it sees."""
