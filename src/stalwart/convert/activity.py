"""What single layers get and give, in a network and in its spiking copy: later layers are not computed."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.core.errors import InputError
from stalwart.core.hooks import removing
from stalwart.spiking import LIF, InTime, SpikingNetwork

FRAMES = 256
"""Frames, samples x steps, that pass together."""
_VALUES = 1 << 22
"""Of how many values an order statistic is taken at most; of more, of evenly spaced ones."""


class _Seen(Exception):
    """Stops a pass where what was asked for has been seen."""


def caught(model: nn.Module, layer: nn.Module, parts: Sequence[Tensor], inputs: bool = False) -> Iterator[Tensor]:
    """Yield the outputs, or the inputs, of one layer on batches of a model's inputs, one batch after the other.

    Raises:
        InputError: the model never calls the layer.
    """
    found: list[Tensor] = []

    def before(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        found.append(given[0])
        raise _Seen

    def after(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        found.append(out)
        raise _Seen

    hook: Any = layer.register_forward_pre_hook(before) if inputs else layer.register_forward_hook(after)
    with hook:
        for part in parts:
            with contextlib.suppress(_Seen):
                model(part)
            if not found:
                raise InputError(
                    f"the model does not call its {type(layer).__name__} layer, which therefore cannot convert."
                )
            yield found.pop()


def activations(plain: nn.Module, path: str, x: Tensor) -> Tensor:
    """Return what the activation at a path gives on inputs [N, ...], [N, ...]."""
    return torch.cat(list(caught(plain, plain.get_submodule(path), x.split(FRAMES))))


def outputs(network: SpikingNetwork, path: str, x: Tensor) -> Tensor:
    """Return what the neurons at a path give on inputs [N, ...], averaged over the steps that count, [N, ...]."""
    parts = x.split(max(1, FRAMES // network.steps))
    found = caught(network, neurons_at(network, path), parts)
    return torch.cat([one[network.wait :].mean(0) for one in found])


def neurons_at(network: SpikingNetwork, path: str) -> LIF:
    """Return the neurons that took the place of the activation at a path."""
    layer = network.layers.get_submodule(path)
    assert isinstance(layer, InTime)
    assert isinstance(layer.neuron, LIF)
    return layer.neuron


def shapes(plain: nn.Module, paths: Sequence[str], x: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the shape of one sample's values at each activation, by path."""
    found: dict[str, tuple[int, ...]] = {}

    def keep(path: str) -> Callable[..., None]:
        def look(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            found[path] = tuple(out.shape[1:])

        return look

    hooks = [plain.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    with removing(hooks), torch.no_grad():
        plain(x[:1])
    return found


def by_channel(values: Tensor) -> Tensor:
    """Return values [N, C, ...] as [C, n], evenly spaced ones of very many."""
    rows = values.transpose(0, 1).flatten(1)
    return rows[:, :: -(-rows.numel() // _VALUES)]


def thinned(values: Tensor) -> Tensor:
    """Return values as [1, n], evenly spaced ones of very many."""
    flat = values.flatten()
    return flat[None, :: -(-len(flat) // _VALUES)]


def order_statistic(rows: Tensor, percentile: float) -> Tensor:
    """Return of each row [R, n] its k-th smallest value, k = 1 + round(p / 100 (n - 1)), [R]."""
    k = 1 + round(percentile / 100 * (rows.shape[1] - 1))
    return rows.kthvalue(k, dim=1).values


def shown(path: str) -> str:
    """Return a module path as the user knows it, without the part that tracing adds."""
    return path.replace("inner.", "")
