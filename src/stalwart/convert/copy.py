"""A spiking network with the weights of a trained one."""

import copy
from collections.abc import Callable

from torch import nn

from stalwart.spiking import LIF, SpikingNetwork, with_neurons


def spiking_copy(layers: nn.Module, encoder: nn.Module, steps: int, neuron: Callable[[str], LIF]) -> SpikingNetwork:
    """Return a network of copies of the layers, in evaluation mode; logits are means over time, without neurons at the end.

    Args:
        layers: [B, ...] -> [B, K], whose activations are ``nn.ReLU`` modules; left as it is. What it normalises must be part
            of the encoder, as the signed Poisson encoder sees 2 x - 1.
        encoder: [B, ...] -> [T, B, ...].
        steps: T.
        neuron: makes the neurons for a module path.

    Raises:
        InputError: there is no ReLU.
    """
    return SpikingNetwork(encoder, with_neurons(copy.deepcopy(layers), steps, neuron), steps).eval()
