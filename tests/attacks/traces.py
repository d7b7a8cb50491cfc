"""What an attack might leave behind in a model, and a layer that leaves something at every call."""

import torch
from torch import nn


class InPlaceCounter(nn.Module):
    """Counts its calls in a buffer, in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return x


def snapshot(model):
    return {
        "modes": [module.training for module in model.modules()],
        "noise modes": [getattr(module, "mode", None) for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "parameters": [id(p) for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "state": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        "buffers": {name: id(buffer) for name, buffer in model.named_buffers()},
        "randomness": torch.get_rng_state().tolist(),
    }
