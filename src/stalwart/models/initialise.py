"""Initial weights for certified training."""

import math

import torch
from torch import nn

from stalwart.core.layers import WEIGHTED
from stalwart.core.numbers import require
from stalwart.core.random import generator, normal


def ibp_initialise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every weight from N(0, 2 π / fan_in²) except those of the last layer, and return the model.

    Boxes then keep their width from layer to layer, which they multiply under other initialisations. Biases stay as they are.
    Source: Shi et al., "Fast certified robust training with short warmup", NeurIPS 2021 (arXiv 2103.17268), section 4.1.

    Args:
        model: any module with linear or convolutional layers; the last registered one is left alone.
        seed: root seed of the draws.

    Raises:
        UsageError: the model has no such layer.
    """
    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, WEIGHTED)]
    require(len(layers) > 0, "the initialisation 'ibp' needs linear or convolutional layers; this model has none.")
    with torch.no_grad():
        for path, layer in layers[:-1]:
            weight = layer.weight
            draw = normal(weight.shape, generator(seed, "init", path, device=weight.device), weight, batch_axis=None)
            weight.copy_(draw * (math.sqrt(2 * math.pi) / weight[0].numel()))
    return model
