"""Steps in periods: together they are the whole, and gradients end where a period began."""

import pytest
import torch
from torch import nn

from stalwart.core.errors import InputError, UsageError
from stalwart.core.noise import noise
from stalwart.core.random import generator
from stalwart.spiking import LIF, Direct, InTime, Latency, Poisson, RateNeuron, SpikingNetwork, period, with_neurons

IMAGES = torch.rand(4, 1, 8, 8, generator=generator(5))


def make(order="integrate_first", reset="soft", encoder=None, steps=6, trained=()):
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 12), nn.ReLU()
    )
    layers = with_neurons(
        layers, steps, lambda path: LIF(0.9, 1.0, order=order, reset=reset, surrogate="triangle", trained=trained)
    )
    network = nn.Sequential(SpikingNetwork(encoder or Direct(steps), layers, steps), nn.Linear(12, 3))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.endswith(("leak", "threshold")):
                parameter.mul_(2)
    return network.eval()


@pytest.mark.parametrize("order", ["integrate_first", "fire_first"])
@pytest.mark.parametrize("reset", ["soft", "hard", "none"])
@pytest.mark.parametrize("encoder", [Direct, Latency, Poisson])
def test_periods_add_up_to_the_whole(order, reset, encoder):
    network = make(order, reset, encoder(6))
    with noise(network, "fixed", seed=0), torch.no_grad():
        whole = network(IMAGES)
        kept, outputs = {}, []
        for first, last in ((0, 1), (1, 4), (4, 6)):
            with period(first, last, kept) as after:
                outputs.append(network(IMAGES))
            kept = after
        rates = [network[0](IMAGES) for network in (make(order, reset, encoder(6)),)]
    assert torch.allclose(outputs[-1], whole, atol=1e-6)
    assert not torch.allclose(outputs[1], whole)
    assert rates[0].any()


def test_gradients_end_where_the_period_began():
    # The same as the whole in plain autograd with membranes detached at step 3.
    network = make(trained=("leak", "threshold"))
    x = IMAGES.clone().requires_grad_()
    with period(0, 3, {}) as kept, torch.no_grad():
        network(IMAGES)
    with period(3, 6, kept):
        out = network(x)
    weights = [p for name, p in network.named_parameters() if name.endswith("weight")]
    found = torch.autograd.grad(out.square().sum(), [x, *weights, network[0].layers[1].neuron.leak])

    conv, flat, head = network[0].layers[0], network[0].layers[4], network[1]
    leak = network[0].layers[1].neuron.leak
    own = x.detach().clone().requires_grad_()

    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return (z >= 0).to(z)

        @staticmethod
        def backward(ctx, g):
            (z,) = ctx.saved_tensors
            return g * (1 - z.abs()).clamp_min(0)

    v1 = v2 = total = 0.0
    for t in range(6):
        if t == 3:
            v1, v2, total = v1.detach(), v2.detach(), total.detach()
        u = leak * v1 + conv(own)
        s = Spike.apply(u - 1)
        v1 = u - s.detach()
        u = 0.9 * v2 + flat(s.flatten(1))
        o = Spike.apply(u - 1)
        v2 = u - o.detach()
        total = total + o
    expected = torch.autograd.grad(head(total / 6).square().sum(), [own, *weights, leak])
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5 * (1 + float(other.abs().max())))
        assert one.abs().sum() > 0


def test_dropout_keeps_its_mask():
    network = make().train()
    masks, kept = [], {}
    for first in (0, 3):
        with period(first, first + 3, kept) as after:
            network(torch.ones(16, 1, 8, 8))
        kept = after
        masks.append(after[network[0].layers[2]])
    assert torch.equal(*masks)
    assert 0 < int((masks[0] == 0).sum()) < masks[0].numel()


def test_what_cannot_run_in_periods_is_refused():
    with pytest.raises(UsageError, match="needs a step at least"), period(2, 2, {}):
        pass
    with pytest.raises(UsageError, match="has 6 steps, not 7"), period(5, 7, {}):
        make()(IMAGES)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), InTime(RateNeuron(), 4))
    with pytest.raises(InputError, match="RateNeuron neurons cannot run a period"), period(0, 2, {}):
        SpikingNetwork(Direct(4), layers, 4)(IMAGES)
