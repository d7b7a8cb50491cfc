"""Networks: the same layers with neurons in them, run at once or step by step, traced, bounded, and their gradients swapped."""

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.core.errors import InputError, UsageError
from stalwart.core.modes import stepwise
from stalwart.core.noise import noise
from stalwart.core.random import generator
from stalwart.models.resnet import BasicBlock
from stalwart.spiking import LIF, Direct, InTime, Poisson, SpikingNetwork, gradients, neurons, with_neurons

IMAGES = torch.rand(4, 1, 8, 8, generator=generator(5))


def make(order="integrate_first", reset="soft", steps=4, encoder=None, gain=2.0):
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 12), nn.ReLU()
    )
    layers = with_neurons(layers, steps, lambda path: LIF(0.9, 1.0, order=order, reset=reset, surrogate="triangle"))
    network = nn.Sequential(SpikingNetwork(encoder or Direct(steps), layers, steps), nn.Linear(12, 3))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(gain)
    return network.eval()


def test_layers_before_the_first_neuron_run_once():
    network = make()
    rows = []
    network[0].layers[0].register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
    network(IMAGES)
    assert rows == [4]
    assert make(encoder=Poisson(4))[0].layers[0].training is False


def test_a_constant_input_is_the_same_as_copies_of_it():
    network = make()

    class Copies(nn.Module):
        def forward(self, x):
            return x.repeat(4, 1, 1, 1, 1)

    x = IMAGES.clone().requires_grad_()
    once = network(x)
    (first,) = torch.autograd.grad(once.square().sum(), x)
    network[0].encoder = Copies()
    many = network(x)
    (second,) = torch.autograd.grad(many.square().sum(), x)
    assert torch.allclose(once, many, atol=1e-6)
    assert torch.allclose(first, second, atol=1e-5)
    assert first.abs().sum() > 0


@pytest.mark.parametrize("order", ["integrate_first", "fire_first"])
@pytest.mark.parametrize("reset", ["soft", "hard", "none"])
def test_step_by_step_gives_the_same(order, reset):
    network = make(order, reset, steps=6)
    at_once = network(IMAGES)
    with stepwise():
        assert torch.allclose(network(IMAGES), at_once, atol=1e-6)
    assert len(at_once.unique()) > 3


def test_nothing_is_kept_between_calls():
    network = make()
    assert torch.equal(network(IMAGES), network(IMAGES))
    with stepwise():
        network(IMAGES)
    assert torch.equal(network(IMAGES[:2]), network(IMAGES)[:2])


def test_dropout_is_shared_over_time():
    network = make(encoder=Poisson(4)).train()
    seen = []
    network[0].layers[2].register_forward_hook(lambda module, inputs, out: seen.append((inputs[0], out)))
    network(torch.ones(64, 1, 8, 8))
    before, after = (one.unflatten(0, (4, 64)) for one in seen[0])
    dropped = ((after == 0) & (before > 0)).any(0)
    kept = ((after > 0) & (before > 0)).any(0)
    assert dropped.any()
    assert kept.any()
    assert not (dropped & kept).any()


def test_a_residual_block_becomes_spiking():
    torch.manual_seed(1)
    layers = with_neurons(nn.Sequential(BasicBlock(1, 4, 1), nn.Flatten()), 3, lambda path: LIF(0.9, 0.5))
    network = SpikingNetwork(Direct(3), layers, 3).eval()
    assert sorted(neurons(network)) == ["layers.0.relu1.neuron", "layers.0.relu2.neuron"]
    with stepwise():
        assert torch.allclose(network(IMAGES), SpikingNetwork.forward(network, IMAGES))
    out = network(IMAGES)
    assert out.sum() > 0
    with pytest.raises(InputError, match="no ReLU"):
        with_neurons(nn.Sequential(nn.Linear(2, 2)), 3, lambda path: LIF())


@pytest.mark.parametrize("order", ["integrate_first", "fire_first"])
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "lbp", "alpha-crown"])
def test_bounds_hold_at_every_sampled_point(order, reset, method):
    # A fire-first layer is silent at first, so that few steps would show nothing.
    network = make(order, reset, steps=3 if order == "integrate_first" else 6, gain=1.5)
    x = IMAGES[:2]
    within = sw.Linf(0.05)
    with torch.no_grad():
        bounds = sw.bound(network, x, within=within, method=method)
        exact = sw.bound(network, x, within=sw.Linf(0.0), method=method)
        assert torch.allclose(exact.lower, network(x), atol=1e-5)
        assert torch.allclose(exact.upper, network(x), atol=1e-5)
        for seed in range(60):
            source = generator(seed)
            point = within.sample(x, source)
            if seed % 2:
                point = (x + 0.05 * (torch.randint(2, x.shape, generator=source) * 2 - 1)).clamp(0, 1)
            out = network(point)
            assert (out >= bounds.lower - 1e-5).all()
            assert (out <= bounds.upper + 1e-5).all()
    assert (bounds.upper - bounds.lower).max() > 0


def test_bounds_widen_with_the_radius():
    network = make(steps=3)
    with torch.no_grad():
        widths = [sw.bound(network, IMAGES, within=sw.Linf(eps), method="crown-ibp") for eps in (0.0, 0.005, 0.02, 0.1)]
    spans = [float((one.upper - one.lower).mean()) for one in widths]
    assert spans == sorted(spans)


def test_gradients_are_swapped_and_put_back():
    network = make()
    x = IMAGES.clone().requires_grad_()

    def gradient():
        return torch.autograd.grad(network(x).square().sum(), x)[0]

    usual, out = gradient(), network(x)
    for options in (
        {"surrogate": "straight-through"},
        {"surrogate": {"name": "rectangle", "gamma": 4}},
        {"backward": "cba"},
    ):
        with gradients(network, **options):
            assert torch.equal(network(x), out)
            assert not torch.allclose(gradient(), usual)
        assert torch.equal(gradient(), usual)
    with pytest.raises(InputError, match="no spiking neurons"), gradients(nn.Linear(2, 2), "atan"):
        pass
    with pytest.raises(UsageError, match="unknown backward mode"), gradients(network, backward="magic"):
        pass


def test_neurons_train_their_leak_and_threshold():
    layer = LIF(0.9, 1.0, shape=(3, 1, 1), trained=("leak", "threshold"))
    assert sorted(name for name, _ in layer.named_parameters()) == ["leak", "threshold"]
    x = torch.rand(5, 2, 3, 4, 4, generator=generator(0))
    layer(x).sum().backward()
    assert layer.leak.grad.shape == layer.threshold.grad.shape == (3, 1, 1)
    assert (layer.threshold.grad < 0).all()
    assert not list(LIF().parameters())
    with pytest.raises(UsageError, match="not colour"):
        LIF(trained=("colour",))


def test_neurons_outside_a_network_cannot_be_bounded():
    with pytest.raises(InputError, match="step by step only inside their network"):
        sw.bound(nn.Sequential(InTime(LIF(), 1), nn.Flatten()), torch.rand(2, 3), within=sw.Linf(0.1))


class _Unknown(nn.Module):
    """A layer that might mix samples: nobody knows."""

    def forward(self, x):
        return x


def test_parts_and_recomputing_change_neither_values_nor_gradients():
    torch.manual_seed(0)
    stack = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 5)
    )
    network = SpikingNetwork(Poisson(4), with_neurons(stack, 4, lambda path: LIF(0.9, 0.5)), 4)
    # 40 samples of 4 steps are more than one part; the watched network runs whole, unfused, with all activations kept.
    x = torch.rand(40, 1, 8, 8, generator=generator(1))
    weights = torch.rand(40, 5, generator=generator(2))
    found = []
    for recompute, layers in ((False, stack), (True, stack), (False, nn.Sequential(stack, _Unknown()))):
        network.recompute, network.layers = recompute, layers
        with noise(network, "fixed", seed=3):
            out = network(x)
        network.zero_grad()
        (out * weights).sum().backward()
        found.append([out, *(parameter.grad.clone() for parameter in network.parameters())])
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert torch.allclose(one, same, atol=1e-5)
    assert found[0][0].abs().sum() > 0
    network.recompute = True
    with pytest.raises(UsageError, match="recompute"):
        network(x)


def test_whoever_watches_a_layer_sees_the_whole_batch():
    torch.manual_seed(0)
    stack = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
    network = SpikingNetwork(Direct(4), with_neurons(stack, 4, lambda path: LIF(0.9, 0.5)), 4)
    shapes = []
    stack[1].register_forward_hook(lambda module, inputs, out: shapes.append(out.shape))
    stack[2].register_forward_hook(lambda module, inputs, out: shapes.append(out.shape))
    network(torch.rand(40, 1, 8, 8))
    assert shapes == [(160, 8, 8, 8), (160, 8, 4, 4)]


def test_the_published_gradient_is_the_straight_through_one():
    # Sharmin et al. sum the gradients of the first layer's membranes over time and convolve them with the turned kernel.
    network = make("fire_first", steps=8, encoder=Poisson(8), gain=1.5)
    x = IMAGES.clone().requires_grad_()
    first = network[0].layers[0]
    currents = []
    hook = first.register_forward_hook(lambda module, inputs, out: currents.append(out) or out.retain_grad())
    with noise(network, "fixed", seed=4):
        nn.functional.cross_entropy(network(x), torch.tensor([0, 1, 2, 0])).backward()
    hook.remove()
    summed = currents[0].grad.unflatten(0, (8, 4)).sum(0)
    published = nn.functional.conv_transpose2d(summed, first.weight, stride=2, padding=1, output_padding=1)
    assert summed.abs().sum() > 0
    # Theirs is the gradient of 2 x - 1.
    assert torch.allclose(2 * published, x.grad, atol=1e-5 * float(x.grad.abs().max()))


@pytest.mark.parametrize("divisor", [None, 1, 4])
def test_pooling_that_divides_by_another_number_is_not_taken_for_a_mean(divisor):
    layers = nn.Sequential(InTime(LIF(0.9, 0.5), 3), nn.AvgPool2d(2, divisor_override=divisor))
    spikes = sw.spiking.lif(IMAGES.expand(3, *IMAGES.shape), 0.9, 0.5)
    expected = nn.functional.avg_pool2d(spikes.mean(0), 2) * 4 / (divisor or 4)
    torch.testing.assert_close(SpikingNetwork(Direct(3), layers, 3)(IMAGES), expected)
