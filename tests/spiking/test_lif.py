"""Neurons against an autograd loop written separately, the published trace, and what they refuse."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d

from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.spiking import SURROGATES, find_surrogate, lif
from stalwart.spiking.lif import compiles
from stalwart.spiking.modes import BACKWARDS

ORDERS = ("integrate_first", "fire_first")
RESETS = ("soft", "hard", "none")


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, surrogate, strict):
        ctx.save_for_backward(z)
        ctx.surrogate = surrogate
        return (z > 0 if strict else z >= 0).to(z)

    @staticmethod
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        return g * ctx.surrogate.slope(z), None, None


def twin(x, leak, threshold, reset, order, detach, surrogate):
    """The same dynamics, differentiated by autograd."""
    v = torch.zeros_like(x[0])
    out = []
    for current in x:
        first = order == "integrate_first"
        u = leak * v + current if first else v
        s = Spike.apply(u / threshold - 1, surrogate, not first)
        r = s.detach() if detach else s
        if first:
            v = u - threshold * r if reset == "soft" else u * (1 - r) if reset == "hard" else u
        elif reset == "soft":
            v = leak * u + current - threshold * r
        else:
            v = leak * (u * (1 - r) if reset == "hard" else u) + current
        out.append(s)
    return torch.stack(out)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    # Of those that see one membrane at a time, as the loop does.
    surrogate=st.sampled_from([name for name in sorted(SURROGATES) if find_surrogate(name).code >= 0]),
    reset=st.sampled_from(RESETS),
    order=st.sampled_from(ORDERS),
    detach=st.booleans(),
    shape=st.sampled_from([(1, 1, 1), (2, 3, 5), (9, 2, 3, 4, 4), (4, 1, 700)]),
    per=st.sampled_from(["layer", "channel", "neuron"]),
    held=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
def test_values_and_gradients_are_those_of_the_loop(surrogate, reset, order, detach, shape, per, held, dtype, seed):
    source = generator(seed)
    sample = shape[2:]
    size = {"layer": (), "channel": (sample[0], *[1] * (len(sample) - 1)), "neuron": sample}[per]
    base = torch.randn((1 if held else shape[0], *shape[1:]), generator=source, dtype=dtype) + 0.3
    leaf = base.requires_grad_()
    leak = torch.rand(size, generator=source, dtype=dtype).requires_grad_()
    threshold = (torch.rand(size, generator=source, dtype=dtype) + 0.5).requires_grad_()
    g = torch.randn(shape, generator=source, dtype=dtype)
    found, wanted = (
        run(leaf.expand(shape))
        for run in (
            lambda x: lif(x, leak, threshold, reset, surrogate, order, detach),
            lambda x: twin(x, leak, threshold, reset, order, detach, find_surrogate(surrogate)),
        )
    )
    assert torch.equal(found, wanted)
    ours = torch.autograd.grad(found, (leaf, leak, threshold), g)
    theirs = torch.autograd.grad(wanted, (leaf, leak, threshold), g, materialize_grads=True)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * (1 + float(other.abs().max())))


def test_channels_last_and_gaps_make_no_difference():
    source = generator(3)
    x = torch.randn(4, 2, 3, 5, 5, generator=source)
    g = torch.randn(4, 2, 3, 5, 5, generator=source)
    leak, threshold = torch.rand(3, 1, 1, generator=source), torch.rand(3, 1, 1, generator=source) + 0.5

    def both(currents):
        leaf = currents.detach().requires_grad_()
        spikes = lif(leaf, leak, threshold)
        return spikes, torch.autograd.grad(spikes, leaf, g)[0]

    plain = both(x)
    turned = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 2))
    gappy = torch.stack([x, x], -1)[..., 0]
    for other in (turned, gappy):
        for one, same in zip(plain, both(other), strict=True):
            assert torch.allclose(one, same, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_take_the_plain_loop(dtype):
    x = torch.full((6, 1, 4), 0.75, dtype=dtype, requires_grad=True)
    assert not compiles(x)
    spikes = lif(x, leak=1.0)
    assert spikes.dtype == dtype
    assert spikes[:, 0, 0].tolist() == [0, 1, 1, 1, 0, 1]
    spikes.sum().backward()
    assert x.grad.abs().sum() > 0


def test_the_published_trace():
    # Sharmin et al.'s order: the spike is decided by the old membrane, and one at the threshold stays silent.
    spikes = lif(torch.full((12, 1, 1), 0.75), leak=1.0, order="fire_first").flatten()
    assert (spikes.nonzero().flatten() + 1).tolist() == [3, 4, 6, 7, 8, 10, 11, 12]


def test_the_contract_by_hand():
    # u = .75, 1.5 -> fires, leaves .5; 1.25 -> fires, leaves .25; exactly 1 fires.
    assert lif(torch.full((4, 1, 1), 0.75), leak=1.0).flatten().tolist() == [0, 1, 1, 1]
    assert lif(torch.full((3, 1, 1), 0.75), leak=1.0, reset="hard").flatten().tolist() == [0, 1, 0]
    assert lif(torch.full((3, 1, 1), 0.75), leak=1.0, reset="none").flatten().tolist() == [0, 1, 1]
    assert lif(torch.ones(1, 1, 1)).flatten().tolist() == [1]


@pytest.mark.parametrize("mode", BACKWARDS)
@pytest.mark.parametrize("reset", RESETS)
def test_modes_change_the_gradient_only(mode, reset):
    x = (torch.randn(6, 2, 9, generator=generator(1)) + 0.4).requires_grad_()
    usual = lif(x, 0.9, 1.0, reset)
    other = lif(x, 0.9, 1.0, reset, backward=mode)
    assert torch.equal(usual, other)
    (gradient,) = torch.autograd.grad(other, x, torch.ones_like(other))
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_modes_by_hand():
    x = torch.tensor([0.6, 0.6, 0.0]).reshape(3, 1, 1).requires_grad_()
    g = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)

    def gradient(mode, **options):
        return torch.autograd.grad(lif(x, 1.0, 2.0 if mode == "bptr" else 1.0, backward=mode, **options), x, g)[0]

    assert gradient("bptr").flatten().tolist() == [0, 0, 0]  # at threshold 2 it never fires
    # The mean current is 0.4; λ = 1 puts it on the second slope, (1 - 0) / 2; the mean gradient is 2.
    assert torch.allclose(gradient("rga").flatten(), torch.full((3,), 1.0))
    assert torch.allclose(gradient("cba").flatten(), torch.full((3,), 2.0))
    # Membranes 0.6, 1.2, 0.2: z = -0.4, 0.2, -0.8, and the triangle of width 1.
    hart = gradient("hart", surrogate="triangle").flatten()
    assert torch.allclose(hart, 2 * torch.tensor([0.6, 0.8, 0.2]), atol=1e-6)


def test_there_is_no_second_derivative():
    x = torch.ones(2, 1, 1, requires_grad=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(lif(x).sum(), x, create_graph=True)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"leak": 1.5}, "leak of neurons must lie in"),
        ({"threshold": 0.0}, "threshold of neurons must be positive"),
        ({"reset": "never"}, "unknown reset 'never'"),
        ({"order": "last"}, "unknown order 'last'"),
        ({"backward": "magic"}, "unknown backward mode 'magic'"),
        ({"surrogate": "triangel"}, "Did you mean 'triangle'"),
        ({"surrogate": {"name": "triangle", "gamma": -1}}, "gamma must be positive"),
    ],
)
def test_impossible_options_are_refused(options, what):
    with pytest.raises(UsageError, match=what):
        lif(torch.ones(2, 1, 3), **options)


def test_impossible_shapes_are_refused():
    with pytest.raises(InputError, match="at least one time step"):
        lif(torch.ones(0, 1, 3))
    with pytest.raises(InputError, match=r"a threshold of shape \[2\] does not fit neurons of shape \[3\]"):
        lif(torch.ones(2, 1, 3), threshold=torch.ones(2))
    with pytest.raises(InputError, match="floating-point"):
        lif(torch.ones(2, 1, 3, dtype=torch.int64))


@pytest.mark.parametrize(("channels", "side"), [(8, 4), (32, 14), (40, 6), (200, 4), (3, 4), (16, 5)])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("per", ["layer", "channel", "neuron"])
def test_pooled_spikes_are_the_means_of_spikes(channels, side, order, per):
    # Few channels and odd sides are pooled outside of the loops, 200 channels in two pieces.
    source = generator(channels)
    x = torch.randn(5, 2, side, side, channels, generator=source).movedim(-1, 2) + 0.3
    size = {"layer": (), "channel": (channels, 1, 1), "neuron": (channels, side, side)}[per]
    leak = torch.rand(size, generator=source).requires_grad_()
    threshold = (torch.rand(size, generator=source) + 0.5).requires_grad_()
    for currents in (x, x[:1].expand_as(x), x.contiguous()):
        leaf = currents.detach().requires_grad_()
        found = lif(leaf, leak, threshold, order=order, pool=True)
        wanted = avg_pool2d(lif(leaf, leak, threshold, order=order).flatten(0, 1), 2).unflatten(0, (5, 2))
        assert torch.equal(found, wanted)
        g = torch.randn(found.shape, generator=source)
        ours, theirs = (torch.autograd.grad(one, (leaf, leak, threshold), g) for one in (found, wanted))
        for one, other in zip(ours, theirs, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * (1 + float(other.abs().max())))
    with pytest.raises(InputError, match="2 x 2"):
        lif(x[..., :1], pool=True)
