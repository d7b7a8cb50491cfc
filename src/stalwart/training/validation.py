"""Validation: clean accuracy, accuracy under the recipe's attack, certified accuracy, and what noise and neurons are doing."""

import torch
from torch import nn

from stalwart.attacks import attack
from stalwart.attacks.guard import undisturbed
from stalwart.certify.neurons import neuron_status, together
from stalwart.core.random import derive
from stalwart.core.registry import lookup
from stalwart.data import Split
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
    ``dead_i``, ``unstable_i`` and, of functions that bend twice as ParamRamps do, dead above the second kink,
    ``ramp_dead_i``, at the i-th piecewise-linear activation, counted as certificates count them; ``noise_*``.
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
    certified, parts = 0, []
    with undisturbed(model, seed), torch.no_grad():
        for x, y in split.loader(_BATCH):
            margins, known = certify(model, x, y, within, method)
            # NaN certifies nothing.
            certified += int((margins > 0).all(1).sum())
            parts.append(neuron_status(known))
    samples = max(len(split), 1)
    found = {"validation_certified_accuracy": certified / samples}
    for number, layer in enumerate(together(parts) if parts else (), 1):
        counts = layer.counts
        shares = {"dead": counts["dead"], "unstable": counts["unstable"] + counts.get("right-unstable", 0.0)}
        if "right-dead" in counts:
            shares["ramp_dead"] = counts["right-dead"]
        found |= {f"{name}_{number}": count / (layer.neurons * samples) for name, count in shares.items()}
    return found


def _margins(model: nn.Module, split: Split, seed: int) -> dict[str, float]:
    x, _ = split.take(_BATCH).batch(slice(None))
    with undisturbed(model, seed), noise(model, "off"), torch.no_grad():
        top = model(x).topk(2, 1).values
        found = {"noise_median_margin": float((top[:, 0] - top[:, 1]).median())}
        if hasattr(model, "features"):
            found["noise_feature_norm"] = float(model.features(x).norm(dim=1).median())  # type: ignore[operator]
        return found
