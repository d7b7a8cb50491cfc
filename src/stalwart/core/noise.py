"""What every noise layer shares: a mode (on, off, fixed) and its own seeded stream of random numbers.

Noise does not depend on ``train()`` or ``eval()``: a randomised defence is randomised when it is attacked and when it is
deployed, so only :func:`noise` switches it.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from stalwart.core.random import derive

Mode = Literal["on", "off", "fixed"]


class NoiseLayer(nn.Module):
    """Base of layers that draw noise.

    ``mode`` is "on" (fresh draws, independent for each sample where the noise is on activations), "off" (none) or "fixed":
    the same draw at every call and for every sample, so that the model is an ordinary deterministic function.

    ``for_each_sample`` says whether, where it is "on", each sample of a batch has draws of its own.
    """

    for_each_sample: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.mode: Mode = "on"
        self._seed: int | None = None
        self._streams: dict[torch.device, torch.Generator] = {}

    def stream(self, device: torch.device) -> torch.Generator:
        """Return the generator to draw from; in mode "fixed" it starts anew at every call."""
        if self.mode == "fixed" or device not in self._streams:
            fresh = torch.Generator(device=device)
            if self._seed is None:
                fresh.seed()
            else:
                fresh.manual_seed(self._seed)
            if self.mode == "fixed":
                return fresh
            self._streams[device] = fresh
        return self._streams[device]

    def __getstate__(self) -> dict[str, Any]:
        # Generators cannot be copied across processes; a copy starts its own stream from the same seed.
        return {**self.__dict__, "_streams": {}}


def noise_layers(model: nn.Module) -> dict[str, NoiseLayer]:
    """Return the model's noise layers by module path."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, NoiseLayer)}


def is_random(model: nn.Module) -> bool:
    """Tell whether the model holds a noise layer that is switched on."""
    return any(layer.mode == "on" for layer in noise_layers(model).values())


def for_each_sample(model: nn.Module, x: Tensor) -> bool:
    """Tell whether the model is random, all by noise layers, and each sample of a batch ``x`` has draws of its own."""
    on = [layer for layer in noise_layers(model).values() if layer.mode == "on"]
    if not on or not all(layer.for_each_sample for layer in on):
        return False
    # What still differs with fixed noise comes from elsewhere, and nobody knows whose it is.
    with noise(model, "fixed", seed=0):
        return bool(torch.equal(model(x.clone()), model(x.clone())))


@contextlib.contextmanager
def noise(model: nn.Module, mode: Mode | None = None, seed: int | None = None) -> Iterator[None]:
    """Set the mode of every noise layer inside the block; afterwards modes and seeds are as before.

    With a seed the block draws from streams of its own, and each layer's own stream goes on afterwards where it stood.

    Args:
        model: any module; without noise layers this does nothing.
        mode: "on", "off", or "fixed", which needs a seed and repeats the same draws at every call; None keeps each
            layer's own mode.
        seed: root seed of the layers' streams; each layer derives its own from its module path. A layer that stays
            "fixed" keeps its draws.

    Raises:
        ValueError: mode "fixed" without a seed.
    """
    if mode == "fixed" and seed is None:
        raise ValueError("noise mode 'fixed' needs a seed")
    layers = noise_layers(model)
    before = {path: (layer.mode, layer._seed, layer._streams) for path, layer in layers.items()}
    try:
        for path, layer in layers.items():
            layer.mode = mode or layer.mode
            if seed is not None and (mode is not None or layer.mode != "fixed"):
                layer._seed, layer._streams = derive(seed, "noise", path), {}
        yield
    finally:
        for path, layer in layers.items():
            layer.mode, layer._seed, layer._streams = before[path]
