"""Weights that are held in a range."""

import torch
from torch import nn

from stalwart.hardware.names import chosen_parameters
from stalwart.training.config import ClipWeights


@torch.no_grad()
def clip_weights(model: nn.Module, config: ClipWeights) -> None:
    """Clip the model's weights in place, frozen ones too, see :class:`ClipWeights`.

    Raises:
        UsageError: a pattern matches nothing, or there is nothing to clip.
        InputError: a chosen parameter is not float32 or float64.
    """
    for parameter in chosen_parameters(model, config.only, biases=config.limit is not None).values():
        if config.limit is not None:
            parameter.clamp_(-config.limit, config.limit)
        elif config.sigmas is not None:
            middle, reach = parameter.mean(), config.sigmas * parameter.std(correction=0)
            parameter.clamp_(middle - reach, middle + reach)
