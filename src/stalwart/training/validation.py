"""Validation: clean accuracy, accuracy under the recipe's attack, certified accuracy, and what noise and neurons are doing."""

import torch
from torch import nn

from stalwart.attacks import attack
from stalwart.attacks.guard import undisturbed
from stalwart.core.random import derive
from stalwart.core.registry import lookup
from stalwart.data import Split
from stalwart.models.param_ramp import ParamRamp
from stalwart.objectives.bounds_adapter import certify
from stalwart.sets import ThreatSet
from stalwart.sets.table import SETS
from stalwart.stochastic import NoisyHead, noise
from stalwart.stochastic.heads import noise_statistics
from stalwart.training.config import Validation

_BATCH = 500


def validate(model: nn.Module, split: Split, config: Validation | None, seed: int) -> dict[str, float]:
    """Return ``validation_accuracy`` and what configuration and kind of model add.

    These are ``validation_robust_accuracy``, ``validation_certified_accuracy`` with the shares of neurons that are
    ``dead_i``, ``unstable_i`` and, for ParamRamps, dead above the ramp, ``ramp_dead_i``, at the i-th activation; ``noise_*``.
    Models are evaluated with their noise on, one fresh draw an input, and left as they were.
    """
    found = {"validation_accuracy": _accuracy(model, split, seed)}
    if config is not None:
        part = split.take(config.samples)
        within = lookup("threat set", SETS, config.norm)(config.eps)
        if config.attack is not None:
            x, y = part.batch(slice(None))
            result = attack(config.attack, **config.options)(model, x, y, within=within, seed=seed)
            found["validation_robust_accuracy"] = _accuracy(model, Split(result.x_adv, y), derive(seed, "attacked"))
        if config.certify is not None:
            found |= _certified(model, part, within, config.certify, seed)
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


def _certified(model: nn.Module, split: Split, within: ThreatSet, method: str, seed: int) -> dict[str, float]:
    sums: dict[str, float] = {"validation_certified_accuracy": 0.0}
    with undisturbed(model, seed), torch.no_grad():
        for x, y in split.loader(_BATCH):
            margins, activations = certify(model, x, y, within, method)
            # NaN certifies nothing.
            counts = {"validation_certified_accuracy": (margins > 0).all(1).sum()}
            for number, (path, interval) in enumerate(activations, 1):
                low, high = interval.lower, interval.upper
                states = {"dead": high <= 0, "unstable": (low < 0) & (high > 0)}
                module = model.get_submodule(path)
                if isinstance(module, ParamRamp):
                    states["unstable"] |= (low < module.length) & (high > module.length)
                    states["ramp_dead"] = low >= module.length
                counts |= {f"{name}_{number}": state.float().mean() * len(x) for name, state in states.items()}
            for name, count in counts.items():
                sums[name] = sums.get(name, 0.0) + float(count)
    return {name: total / max(len(split), 1) for name, total in sums.items()}


def _margins(model: nn.Module, split: Split, seed: int) -> dict[str, float]:
    x, _ = split.take(_BATCH).batch(slice(None))
    with undisturbed(model, seed), noise(model, "off"), torch.no_grad():
        top = model(x).topk(2, 1).values
        found = {"noise_median_margin": float((top[:, 0] - top[:, 1]).median())}
        if hasattr(model, "features"):
            found["noise_feature_norm"] = float(model.features(x).norm(dim=1).median())  # type: ignore[operator]
        return found
