"""Spiking networks for the tests of NIR, and what their neurons do."""

import pytest
import torch
from torch import nn

from stalwart.spiking import LIF, Direct, InTime, SpikingNetwork

nir = pytest.importorskip("nir", reason="the extra stalwart[nir] is not installed")

STEPS = 6


def images(seed=0, rows=100, shape=(2, 12, 12)):
    return torch.rand(rows, *shape, generator=torch.Generator().manual_seed(seed))


def neurons(leak=1.0, threshold=0.4, reset="hard", **options):
    return InTime(LIF(leak, threshold, reset=reset, **options), STEPS)


def network(*layers, encoder=None, seed=0):
    """Return a spiking network of the layers with weights drawn from a seed, in evaluation mode."""
    stack = nn.Sequential(*layers)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in stack.parameters():
            bound = 1.5 / max(1, parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(bound * (2 * torch.rand(parameter.shape, generator=source) - 1) + 0.05 * bound)
    return SpikingNetwork(Direct(STEPS) if encoder is None else encoder, stack, STEPS).eval()


def spikes(model, x):
    """Return the spikes of each layer of neurons, 0 or 1, and the outputs."""
    found = []
    hooks = [
        layer.neuron.register_forward_hook(lambda module, given, out: found.append(out != 0))
        for layer in model.modules()
        if isinstance(layer, InTime)
    ]
    with torch.no_grad():
        y = model(x)
    for hook in hooks:
        hook.remove()
    return found, y


def assert_same(ours, theirs, x, exact=False):
    """Let two networks send the same spikes, of which there are some and not all, and compare their outputs."""
    (a, y), (b, z) = spikes(ours, x), spikes(theirs, x)
    assert len(a) == len(b) > 0
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one, other)
        assert 0.01 < one.double().mean() < 0.99
    torch.testing.assert_close(z, y, **({"rtol": 0, "atol": 0} if exact else {"rtol": 1e-5, "atol": 1e-6}))
