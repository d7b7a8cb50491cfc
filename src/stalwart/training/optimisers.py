"""Optimisers from their records, and their state as plain tensors for checkpoints."""

from typing import Any

import torch
from torch import Tensor, nn

from stalwart.core.errors import FileError, UsageError
from stalwart.stochastic.pni import strengths
from stalwart.training.config import Optimiser


def build_optimiser(config: Optimiser, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser over the model's trainable parameters, in a decaying and a non-decaying group.

    Raises:
        UsageError: decay "head" for a model that has no ``head``.
    """
    exempt = {id(parameter) for parameter in strengths(model)}
    if config.decay == "head":
        head = getattr(model, "head", None)
        if not isinstance(head, nn.Module):
            raise UsageError(f"decay 'head' needs a model with a head, which {type(model).__name__} has not.")
        decaying = {id(parameter) for parameter in head.parameters()}
    elif config.decay == "weights":
        decaying = {id(parameter) for parameter in model.parameters() if parameter.dim() > 1}
    else:
        decaying = {id(parameter) for parameter in model.parameters()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) in decaying - exempt], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if id(p) not in decaying - exempt], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "sgd":
        return torch.optim.SGD(groups, config.lr, momentum=config.momentum, nesterov=config.nesterov)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(groups, config.lr)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as named tensors."""
    state: dict[int, dict[str, Any]] = optimiser.state_dict()["state"]
    return {
        f"{index}/{key}": value
        for index, entries in state.items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore the state that :func:`optimiser_tensors` gave.

    Raises:
        FileError: the tensors belong to another optimiser or model.
    """
    state: dict[int, dict[str, Tensor]] = {}
    try:
        for name, tensor in tensors.items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = tensor
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    except (KeyError, ValueError) as problem:
        raise FileError(
            f"the checkpoint's optimiser state does not fit this recipe ({problem}); start afresh."
        ) from problem
