"""Threshold balancing: thresholds as high as the largest current that a layer gets, layer after layer."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stalwart.convert.activity import FRAMES, caught, thinned
from stalwart.core.errors import InputError
from stalwart.core.numbers import require
from stalwart.spiking import LIF, InTime, SpikingNetwork


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
    parts = caught(network, layer.neuron, x.split(max(1, FRAMES // network.steps)), inputs=True)
    if percentile == 100:
        return float(torch.stack([currents.max() for currents in parts]).max())
    (values,) = thinned(torch.cat([currents.flatten() for currents in parts]))
    return float(values.kthvalue(max(1, round(percentile / 100 * len(values)))).values)
