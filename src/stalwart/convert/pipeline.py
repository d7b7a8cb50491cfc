"""The way from any network to a spiking one."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.convert.activity import shapes, shown
from stalwart.convert.method import Method
from stalwart.convert.prepare import Findings, prepare
from stalwart.convert.table import METHODS
from stalwart.core.errors import InputError
from stalwart.core.modes import evaluating
from stalwart.core.numbers import require
from stalwart.core.registry import build
from stalwart.spiking import Direct, SpikingNetwork, make_encoder, with_neurons

INPUTS = 1024
"""Training inputs that a conversion looks at."""
Batches = Tensor | Iterable[Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Converted:
    """What :func:`rebuilt` made.

    Attributes:
        network: the spiking copy.
        plain: the network that it is a copy of, prepared.
        findings: what was replaced, folded and kept.
    """

    network: SpikingNetwork
    plain: nn.Module
    findings: Findings


def convert(
    model: nn.Module,
    calibration: Batches | None = None,
    steps: int = 8,
    encoder: str | Mapping[str, Any] = "direct",
    method: str = "rate",
    max_pool: str = "refuse",
    **options: Any,
) -> SpikingNetwork:
    """Return a spiking network with a trained network's weights, [B, ...] -> [B, K].

    Modules are traced, so that functional ReLUs, sums of branches and pooling are found; batch norm goes into the layers before
    it. Every ReLU becomes integrate-and-fire neurons, whose numbers the method finds. :func:`stalwart.convert.compare` says how
    near the result is.

    Args:
        model: any trained module of linear layers, batch norm, average pooling and ReLU; it is left as it is.
        calibration: inputs [N, ...], or batches of inputs or of (inputs, labels), of training data; about a thousand are used.
        steps: T, time steps for an input, at least 1.
        encoder: a name of :data:`stalwart.spiking.ENCODERS`, or with options ``{"name": "poisson", "signed": False}``.
        method: a name of :data:`stalwart.convert.METHODS`.
        max_pool: "refuse", or "spikes" for the largest spike of each step, which is not the largest rate.
        options: of the method, as its record names them.

    Raises:
        InputError: a layer that cannot convert, named by its path with what to do instead.
        UsageError: an unknown encoder, method or option, or no inputs to calibrate on.

    Example:
        >>> ann = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> convert(ann, torch.rand(64, 4), steps=4)(torch.rand(2, 4)).shape
        torch.Size([2, 3])
    """
    chosen: Method = build("method of conversion", METHODS, method, options)
    require(
        calibration is not None, "conversion needs some training inputs, to measure activations on; pass calibration."
    )
    assert calibration is not None
    return settled(model, inputs_of(calibration), steps, encoder, chosen, max_pool)


def settled(
    model: nn.Module,
    x: Tensor,
    steps: int,
    encoder: str | Mapping[str, Any],
    method: Method,
    max_pool: str = "refuse",
) -> SpikingNetwork:
    """Return the spiking copy with its numbers found on inputs [N, ...]; arguments as of :func:`rebuilt`."""
    made = rebuilt(model, x, steps, encoder, method, max_pool)
    with evaluating(made.plain), evaluating(made.network):
        method.settle(made.network, made.plain, list(made.findings.activations), x)
    return made.network


def rebuilt(
    model: nn.Module,
    x: Tensor,
    steps: int,
    encoder: str | Mapping[str, Any],
    method: Method,
    max_pool: str = "refuse",
) -> Converted:
    """Return the spiking copy before its numbers are found; weights and numbers may then be loaded from a file.

    Args:
        model: the network; only its structure matters where weights are loaded later.
        x: at least one input [N, ...].
        steps, encoder, max_pool: see :func:`convert`.
        method: which neurons.
    """
    require(steps >= 1, f"a spiking network needs at least 1 time step, got {steps}.")
    total = steps + method.wait
    made = make_encoder(encoder, total)
    plain, findings = prepare(model, method.folds, max_pool, analog=isinstance(made, Direct))
    paths = list(findings.activations)
    sizes = shapes(plain, paths, x[:1])
    missing = [path for path in paths if path not in sizes]
    if missing:
        raise InputError(f"the model never calls its activation at '{shown(missing[0])}'; take it out.")
    layers = with_neurons(
        copy.deepcopy(plain), total, lambda path: method.neurons(plain.get_submodule(path), sizes[path])
    )
    return Converted(SpikingNetwork(made, layers, total, wait=method.wait).eval(), plain, findings)


def inputs_of(calibration: Batches) -> Tensor:
    """Return about a thousand inputs [N, ...] of what is given.

    Raises:
        InputError: there are none.
    """
    if isinstance(calibration, Tensor):
        found = [calibration]
    else:
        found = []
        for batch in calibration:
            found.append(batch if isinstance(batch, Tensor) else batch[0])
            if sum(map(len, found)) >= INPUTS:
                break
    if not found or not sum(map(len, found)):
        raise InputError("there are no inputs to calibrate on; pass some batches of training data.")
    return torch.cat(found)[:INPUTS]
