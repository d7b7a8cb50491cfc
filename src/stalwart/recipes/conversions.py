"""Runs whose network was another run's before: what a recipe's ``conversion`` section does."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stalwart.convert import Comparison, compare
from stalwart.convert.method import Method
from stalwart.convert.pipeline import INPUTS, rebuilt, settled
from stalwart.core.files import write_text
from stalwart.core.modes import evaluating
from stalwart.data import Data
from stalwart.recipes.schema import ConversionSection
from stalwart.spiking import SpikingNetwork

COMPARED = 512
"""Held-out inputs that a conversion's result is compared on."""


def structure(section: ConversionSection, network: nn.Module, x: Tensor) -> SpikingNetwork:
    """Return the spiking copy of a network before its numbers are found."""
    return rebuilt(network, x, *_how(section)).network


def converted(section: ConversionSection, network: nn.Module, data: Data) -> SpikingNetwork:
    """Return the spiking copy of a trained network, its numbers found on training data."""
    x, _ = data.train.batch(slice(0, INPUTS))
    return settled(network, x, *_how(section))


def _how(section: ConversionSection) -> tuple[int, dict[str, Any], Method, str]:
    return section.steps, section.encoder.model_dump(), section.chosen, section.max_pool


def comparison(before: nn.Module, network: SpikingNetwork, data: Data) -> Comparison:
    """Compare both networks on held-out data, or on training data where none is held out."""
    part = data.validation if len(data.validation) else data.train
    x, y = part.take(COMPARED).batch(slice(None))
    with evaluating(before), evaluating(network):
        return compare(before, network, x, y)


def write_comparison(folder: Path, before: nn.Module | None, model: nn.Module, data: Data) -> None:
    """Write ``conversion.json`` beside a converted network: what was replaced, folded and kept, and how near the result is."""
    if before is None:
        return
    assert isinstance(model, SpikingNetwork)
    found = comparison(before, model.cpu(), data)
    write_text(folder / "conversion.json", json.dumps(found.record(), indent=1))
    print(found.text(), flush=True)
