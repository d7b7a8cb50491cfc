"""Leave no trace: a model is attacked in evaluation mode and handed back exactly as it was."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from stalwart.core.modes import evaluating
from stalwart.core.random import derive, isolated
from stalwart.stochastic import noise


@contextlib.contextmanager
def undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Evaluate the model inside the block with seeded noise; afterwards modes, buffers, gradients and randomness are as before.

    Parameters do not require gradients inside: only the input's gradient is wanted, and less is kept for the backward pass.
    """
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with evaluating(model), isolated(seed), noise(model, seed=derive(seed, "model")):
            for parameter in parameters:
                parameter.requires_grad_(False)
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.no_grad():
            for module, name, buffer, saved in buffers:
                # A module may write into its buffer or put a new tensor in its place.
                if not torch.equal(buffer, saved):
                    buffer.copy_(saved)
                setattr(module, name, buffer)
