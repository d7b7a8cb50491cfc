"""Initial weights that leave every membrane fluctuating below its threshold, whatever feeds it."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.core.errors import InputError
from stalwart.core.hooks import removing
from stalwart.core.layers import WEIGHTED
from stalwart.core.modes import evaluating
from stalwart.core.numbers import Number, require
from stalwart.core.random import derive, generator, normal
from stalwart.spiking.network import InTime
from stalwart.spiking.neurons import LIF


def weight_statistics(
    fan_in: int,
    rate: Number,
    leak: Number,
    threshold: Number = 1.0,
    xi: Number = 1.0,
    mean: Number = 0.0,
    steps: int | None = None,
    constant: bool = False,
    power: Number | None = None,
) -> tuple[float, float]:
    """Return mean μ_W and standard deviation σ_W of weights whose membranes have mean μ and deviation (θ - μ) / ξ.

        μ_W = μ / (n ν ε̄),    σ_W² = ((θ - μ) / ξ)² / (n ν ε̂) - μ_W²,    ε̄ = Σ λ^k,    ε̂ = Σ λ^2k,    k = 0, ..., T - 1

    The deviation is that of a membrane without reset over time, under n independent inputs that spike with probability ν a
    step; it is exact for small ν, and sqrt(1 - ν) of what is asked for otherwise. Inputs that stay the same do not fluctuate
    in time: there ε̂ = ε̄², and the deviation is that among neurons.
    Source: Rossbroich, Gygax and Zenke, "Fluctuation-driven initialization", 2022 (arXiv 2206.10226), equations 6 to 9, with
    the kernels of discrete time.

    Args:
        fan_in: n, at least 1.
        rate: ν, mean input a step; in (0, 1] for spikes.
        leak: λ in [0, 1]; below 1 if steps is None.
        threshold: θ, positive.
        xi: ξ, how many deviations lie between mean and threshold, positive; 1 to 3 are sensible.
        mean: μ, below the threshold.
        steps: T; None for the limit of many.
        constant: whether the inputs are the same at all steps.
        power: mean square of the inputs, where they are no spikes; ν by default.

    Raises:
        UsageError: a number out of range, or a mean that no such weights reach.
    """
    power = rate if power is None else power
    require(fan_in >= 1, f"fan_in must be at least 1, got {fan_in}.")
    require(power > 0, f"the rate of inputs must be positive, got {power}.")
    require(xi > 0, f"xi must be positive, got {xi}.")
    require(0 <= leak <= 1, f"the leak of neurons must lie in [0, 1], got {leak}.")
    require(mean < threshold, f"the mean of membranes must lie below the threshold {threshold}, got {mean}.")
    require(leak < 1 or steps is not None, "without a leak membranes fluctuate ever more; say after how many steps.")
    first, second = _kernel(leak, steps), _kernel(leak**2, steps)
    require(mean == 0 or rate != 0, "inputs of mean 0 cannot give membranes another mean; leave mean at 0.")
    centre = mean / (fan_in * rate * first) if mean else 0.0
    variance = ((threshold - mean) / xi) ** 2 / (fan_in * power * (first**2 if constant else second)) - centre**2
    require(variance > 0, f"a mean of {mean:g} leaves no room for fluctuations at xi {xi:g}; lower one of them.")
    return centre, math.sqrt(variance)


def _kernel(leak: float, steps: int | None) -> float:
    if leak == 1:
        return float(steps or 0)
    return (1 - (0.0 if steps is None else leak**steps)) / (1 - leak)


@torch.no_grad()
def fluctuation_init(
    model: nn.Module, batch: Tensor, xi: Number = 1.0, mean: Number = 0.0, seed: int = 0
) -> dict[str, float]:
    """Draw the weights before every layer of neurons so that membranes fluctuate as :func:`weight_statistics` says.

    Layers are taken in the order they run: the inputs of each are measured on the batch, with the layers before it drawn
    already. Biases before neurons become 0; a readout behind the last neurons is left alone. Where batch norm follows a
    layer, it decides the spread of membranes, whatever the weights.

    Args:
        model: any module with spiking networks inside.
        batch: inputs [B, ...] of the model.
        xi: ξ, how many deviations lie between mean and threshold, positive.
        mean: μ, mean of the membranes, below the threshold.
        seed: root seed of the draws.

    Returns:
        the measured mean input a step by module path of the layer; for spikes their rate.

    Raises:
        InputError: the model has no weights before neurons, or neurons that are not LIF, or no input reaches a layer, as in a
            silent network.
        UsageError: xi or mean out of range.

    Example:
        >>> layers = nn.Sequential(nn.Linear(4, 8), InTime(LIF(0.9), 5))
        >>> fluctuation_init(SpikingNetwork(Direct(5), layers, 5), torch.ones(2, 4))
        {'layers.0': 1.0}
    """
    before = dict(_before_neurons(model))
    if not before:
        raise InputError("the model has no linear or convolutional layer before neurons whose weights could be drawn.")
    rates: dict[str, float] = {}

    def draw(path: str, layer: nn.Module, x: Tensor) -> None:
        assert isinstance(layer, WEIGHTED)
        neurons = before[path]
        if not isinstance(neurons.neuron, LIF):
            raise InputError(f"this initialisation knows LIF neurons only, not {type(neurons.neuron).__name__}.")
        rate, power = float(x.mean()), float(x.square().mean())
        if not power:
            raise InputError(f"no input reaches layer '{path}': the neurons before it are silent; lower xi.")
        # Before the first neurons a constant encoding runs once.
        constant = len(x) == len(batch) and neurons.steps > 1
        leak, threshold = (float(one.mean()) for one in (neurons.neuron.leak, neurons.neuron.threshold))
        fan_in = layer.weight[0].numel()
        centre, deviation = weight_statistics(fan_in, rate, leak, threshold, xi, mean, neurons.steps, constant, power)
        weight = layer.weight
        source = generator(derive(seed, "fluctuation", path), device=weight.device)
        weight.copy_(centre + deviation * normal(weight.shape, source, weight, batch_axis=None))
        if layer.bias is not None:
            layer.bias.zero_()
        rates[path] = rate

    def hook(path: str) -> Any:
        return lambda layer, inputs: draw(path, layer, inputs[0])

    handles = [model.get_submodule(path).register_forward_pre_hook(hook(path)) for path in before]
    with removing(handles), evaluating(model):
        model(batch)
    return rates


def _before_neurons(model: nn.Module) -> Iterator[tuple[str, InTime]]:
    """Yield each layer of weights by path with the neurons that come next."""
    waiting: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, WEIGHTED):
            waiting.append(path)
        elif isinstance(module, InTime):
            yield from ((one, module) for one in waiting)
            waiting = []
