"""Neurons with first membranes, currents of their own, heights; surrogates in membranes; steps that do not count; QCFS."""

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.core.errors import InputError, UsageError
from stalwart.core.modes import stepwise
from stalwart.core.random import generator
from stalwart.spiking import LIF, QCFS, Direct, InTime, SpikingNetwork, neurons, period, set_steps
from stalwart.spiking.neurons import raise_thresholds
from stalwart.spiking.qcfs import Quantise
from stalwart.spiking.surrogates import SURROGATES, InMembranes, find_surrogate

X = torch.rand(6, 4, 3, generator=generator(0))


def full(**options):
    extras = {"initial": (3,), "bias": (3,), "height": ()}
    neuron = LIF(0.8, 1.0, extras=extras, **options)
    neuron.fill(initial=torch.tensor([0.5, -0.3, 0.0]), bias=torch.tensor([0.1, 0.0, 0.4]), height=torch.tensor(2.0))
    return neuron


@pytest.mark.parametrize("reset", ["soft", "hard", "none"])
def test_extras_do_what_their_equation_says(reset):
    neuron = full(reset=reset)
    v, out = neuron.initial.expand(4, 3), []
    for x in X:
        u = 0.8 * v + x + neuron.bias
        s = (u >= 1.0).float()
        v = u - s if reset == "soft" else u * (1 - s) if reset == "hard" else u
        out.append(2 * s)
    assert torch.equal(neuron(X), torch.stack(out))


def test_extras_hold_step_by_step_and_in_periods():
    layers = nn.Sequential(nn.Linear(3, 3), InTime(full(), 6), nn.Linear(3, 2))
    network = SpikingNetwork(Direct(6), layers, 6)
    x = torch.rand(4, 3, generator=generator(1))
    whole = network(x)
    with stepwise(), torch.no_grad():
        assert torch.allclose(network(x), whole, atol=1e-6)
    with torch.no_grad():
        with period(0, 2, {}) as after:
            network(x)
        with period(2, 6, after):
            assert torch.allclose(network(x), whole, atol=1e-6)


def test_neurons_without_extras_have_no_state_for_them():
    assert set(LIF().state_dict()) == {"leak", "threshold"}
    with pytest.raises(InputError, match="no height"):
        LIF().fill(height=torch.tensor(1.0))
    with pytest.raises(UsageError, match="neurons can have"):
        LIF(extras={"delay": ()})
    with pytest.raises(UsageError, match="fire first"):
        LIF(order="fire_first", extras={"initial": ()})


@pytest.mark.parametrize("name", [name for name in sorted(SURROGATES) if find_surrogate(name).code >= 0])
@pytest.mark.parametrize("threshold", [0.07, 0.8])
def test_widths_in_membranes_do_not_follow_the_threshold(name, threshold):
    # For one step dL/dx is the surrogate at u - θ itself, and dL/dθ its negative sum.
    inner = find_surrogate(name)
    neuron = LIF(1.0, threshold, trained=("threshold",), surrogate=inner, unit="membrane")
    x = torch.linspace(-0.5, 0.5, 11)[None, None].clone().requires_grad_()
    neuron(x).sum().backward()
    assert torch.allclose(x.grad[0, 0], inner.slope(x.detach()[0, 0] - threshold), rtol=1e-4, atol=1e-5)
    plain = InMembranes(inner, threshold)
    z = x.detach()[0, 0] / threshold - 1
    assert torch.allclose(plain.slope(z) / threshold, x.grad[0, 0], rtol=1e-4, atol=1e-5)
    # What θ itself gets is σ' u / θ, as z = u / θ - 1 says.
    assert float(neuron.threshold.grad) == pytest.approx(
        float(-(x.grad * x.detach() / threshold).sum()), rel=1e-3, abs=1e-4
    )


def test_trained_thresholds_are_raised_to_their_floor():
    neuron = LIF(1.0, 1.0, trained=("threshold",), floor=0.03)
    neuron.threshold.data.fill_(-0.2)
    raise_thresholds(neuron)
    assert float(neuron.threshold.detach()) == pytest.approx(0.03)
    for message, options in (
        ("floor", {"floor": 2.0}),
        ("unit", {"unit": "volt"}),
        ("one threshold", {"unit": "membrane", "shape": (3,)}),
    ):
        with pytest.raises(UsageError, match=message):
            LIF(**options)


def test_steps_that_wait_do_not_count():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 8), InTime(LIF(0.9), 6), nn.Linear(8, 2))
    late, all_ = SpikingNetwork(Direct(6), layers, 6, wait=2), SpikingNetwork(Direct(6), layers, 6)
    first = SpikingNetwork(Direct(2), nn.Sequential(layers[0], InTime(layers[1].neuron, 2), layers[2]), 2)
    x = X[0]
    assert torch.allclose(6 * all_(x), 2 * first(x) + 4 * late(x), atol=1e-5)
    with stepwise(), torch.no_grad():
        assert torch.allclose(late(x), 1.5 * all_(x) - 0.5 * first(x), atol=1e-5)
    with pytest.raises(UsageError, match="wait"):
        SpikingNetwork(Direct(2), layers, 2, wait=2)
    with pytest.raises(UsageError, match="at least 3"):
        set_steps(late, 2)
    with pytest.raises(UsageError, match="waits"), period(0, 2, {}):
        late(x)


def test_quantised_activations_take_their_levels_and_train():
    activation = QCFS(levels=4, height=2.0)
    z = torch.linspace(-1, 3, 401, requires_grad=True)
    out = activation(z)
    assert torch.allclose(out.detach().unique(), torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0]))
    out.sum().backward()
    inside = (z >= 0) & (z <= 2)
    assert torch.equal(z.grad, inside.float())
    # dλ: the level itself above, level minus share of what is inside.
    level = out.detach() / 2
    wanted = (level - torch.where(inside, z.detach() / 2, 0.0)).sum()
    assert float(activation.height.grad) == pytest.approx(float(wanted), rel=1e-4)
    for options in ({"levels": 0}, {"height": 0.0}):
        with pytest.raises(UsageError, match="must be"):
            QCFS(**options)
    with pytest.raises(InputError, match="no ReLU"):
        Quantise().apply(nn.Linear(2, 2))


def test_bounds_hold_on_neurons_with_extras():
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    inputs = torch.rand(64, 3, generator=generator(2))
    network = sw.convert(ann, inputs, steps=3, method="calibration", correction="advanced")
    assert all(one.bias is not None and one.initial is not None for one in neurons(network).values())
    x, within = inputs[:4], sw.Linf(0.05)
    for method in ("ibp", "crown"):
        found = sw.bound(network, x, within=within, method=method)
        for seed in range(20):
            with torch.no_grad():
                y = network(within.sample(x, generator(seed)))
            assert (y >= found.lower - 1e-5).all()
            assert (y <= found.upper + 1e-5).all()


def test_the_potential_dependent_surrogate_is_a_density_as_wide_as_membranes_are():
    currents = torch.randn(5, 6, 3, 4, generator=generator(0)) * torch.tensor([0.5, 1.0, 2.0])[:, None]
    z = currents - 1
    slope = find_surrogate("potential-dependent").slope(z)
    for channel in range(3):
        s = float(z[:, :, channel].std(correction=0))
        wanted = torch.distributions.Normal(s / 2, s).log_prob(z[:, :, channel]).exp()
        assert torch.allclose(slope[:, :, channel], wanted, rtol=1e-4)
    x = currents.clone().requires_grad_()
    sw.spiking.lif(x, leak=0.5, surrogate="potential-dependent").sum().backward()
    assert torch.isfinite(x.grad).all()
    assert float(x.grad.abs().max()) > 0
