"""Threshold balancing: thresholds as high as the largest current that a layer gets, layer after layer."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stalwart.core.errors import InputError
from stalwart.core.numbers import require
from stalwart.spiking import LIF, InTime, SpikingNetwork

_FRAMES = 256
"""Frames, samples x steps, that pass together."""
_VALUES = 1 << 24
"""Of how many currents a percentile is taken at most; of more, of evenly spaced ones."""


class _Seen(Exception):
    """Stops a pass where the currents asked for have been seen."""


@torch.no_grad()
def balance_thresholds(network: SpikingNetwork, x: Tensor, percentile: float = 100.0) -> list[float]:
    """Set each layer's threshold to the largest of its currents over neurons, samples and steps, and return the thresholds.

    Layers are balanced in order, so that each sees the spikes of layers that are balanced already. Biases are divided by the
    thresholds before them, as the currents beside them are. As in the paper's code, what comes after a module that is no
    plain layer, such as a residual block, keeps its threshold; so do all further layers.

    Args:
        network: one whose thresholds are per layer; balance with leak 1 and many steps, then change both.
        x: inputs [B, ...], a batch of training data.
        percentile: in (0, 100], of the currents, in place of their maximum.

    Returns:
        The thresholds that were set, in order.

    Raises:
        InputError: thresholds that are not one a layer, or a layer that gets no positive current.

    Source: Diehl et al., IJCNN 2015; Sengupta et al., 2019; Sharmin et al., ECCV 2020, code.
    """
    require(0 < percentile <= 100, f"the percentile must lie in (0, 100], got {percentile}.")
    found: list[float] = []
    scale = 1.0
    for layer in _plain(network.layers):
        if isinstance(layer, InTime):
            if not isinstance(layer.neuron, LIF):
                raise InputError(f"thresholds are balanced of LIF neurons, not of {type(layer.neuron).__name__}.")
            threshold = layer.neuron.threshold
            if threshold.numel() != 1:
                raise InputError(f"thresholds are balanced one a layer, these have shape {list(threshold.shape)}.")
            value = _largest(network, layer, x, percentile)
            if value <= 0:
                raise InputError(
                    f"layer {len(found) + 1} of neurons gets no positive current, so that it would never fire; use more "
                    "steps or other inputs."
                )
            threshold.fill_(value)
            found.append(value)
            scale *= value
        elif getattr(layer, "bias", None) is not None:
            assert isinstance(layer.bias, Tensor)
            layer.bias.div_(scale)
    if not found:
        raise InputError("the network has no plain layer of neurons whose threshold could be balanced.")
    return found


def _plain(layers: nn.Module) -> Iterator[nn.Module]:
    """Yield plain layers in order, up to the first module that contains neurons without being a plain stack."""
    if isinstance(layers, nn.Sequential):
        for layer in layers:
            if not isinstance(layer, InTime | nn.Sequential) and any(isinstance(m, InTime) for m in layer.modules()):
                return
            yield from _plain(layer)
    else:
        yield layers


def _largest(network: SpikingNetwork, layer: InTime, x: Tensor, percentile: float) -> float:
    parts = x.split(max(1, _FRAMES // network.steps))
    seen = [
        currents.max() if percentile == 100 else currents.flatten() for currents in _currents(network, layer, parts)
    ]
    if percentile == 100:
        return float(torch.stack(seen).max())
    values = torch.cat(seen)
    values = values[:: -(-len(values) // _VALUES)]
    return float(values.kthvalue(max(1, round(percentile / 100 * len(values)))).values)


def _currents(network: SpikingNetwork, layer: InTime, parts: tuple[Tensor, ...]) -> Iterator[Tensor]:
    caught: list[Tensor] = []

    def catch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0])
        raise _Seen

    hook = layer.neuron.register_forward_pre_hook(catch)
    try:
        for part in parts:
            with contextlib.suppress(_Seen):
                network(part)
            yield caught.pop()
    finally:
        hook.remove()
