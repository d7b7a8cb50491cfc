"""Validation: clean accuracy, accuracy under the recipe's attack, and what the noise is doing."""

import torch
from torch import nn

from stalwart.attacks import attack
from stalwart.attacks.guard import undisturbed
from stalwart.core.random import derive
from stalwart.core.registry import lookup
from stalwart.data import Split
from stalwart.sets.table import SETS
from stalwart.stochastic import NoisyHead, noise
from stalwart.stochastic.heads import noise_statistics
from stalwart.training.config import Validation

_BATCH = 500


def validate(model: nn.Module, split: Split, config: Validation | None, seed: int) -> dict[str, float]:
    """Return ``validation_accuracy`` and, by configuration and kind of model, ``validation_robust_accuracy`` and ``noise_*``.

    Models are evaluated with their noise on, one fresh draw an input, and left as they were.
    """
    found = {"validation_accuracy": _accuracy(model, split, seed)}
    if config is not None:
        x, y = split.take(config.samples).batch(slice(None))
        within = lookup("threat set", SETS, config.norm)(config.eps)
        result = attack(config.attack, **config.options)(model, x, y, within=within, seed=seed)
        found["validation_robust_accuracy"] = _accuracy(model, Split(result.x_adv, y), derive(seed, "attacked"))
    for module in model.modules():
        if isinstance(module, NoisyHead):
            found |= {f"noise_{name}": value for name, value in noise_statistics(module).items()}
            found |= _margins(model, split, seed)
    return found


def _accuracy(model: nn.Module, split: Split, seed: int) -> float:
    correct = 0
    with undisturbed(model, seed), torch.no_grad():
        for x, y in split.loader(_BATCH):
            correct += int((model(x).argmax(1) == y).sum())
    return correct / max(len(split), 1)


def _margins(model: nn.Module, split: Split, seed: int) -> dict[str, float]:
    x, _ = split.take(_BATCH).batch(slice(None))
    with undisturbed(model, seed), noise(model, "off"), torch.no_grad():
        top = model(x).topk(2, 1).values
        found = {"noise_median_margin": float((top[:, 0] - top[:, 1]).median())}
        if hasattr(model, "features"):
            found["noise_feature_norm"] = float(model.features(x).norm(dim=1).median())  # type: ignore[operator]
        return found
