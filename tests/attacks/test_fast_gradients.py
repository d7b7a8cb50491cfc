"""The fast paths of the CPU change no number."""

import contextlib

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import stalwart as sw
from stalwart.attacks.fast_gradients import FastGradients
from stalwart.attacks.layout import fitting_batch, prefers_channels_last
from stalwart.core import jit
from stalwart.core.layout import channels_last
from stalwart.core.random import generator
from stalwart.spiking import LIF, Direct, SpikingNetwork, with_neurons


@st.composite
def convolutions(draw):
    channels, width = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    size = (draw(st.integers(4, 9)), draw(st.integers(4, 9)))
    stride = draw(st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3))))
    padding = draw(st.one_of(st.integers(0, 2), st.tuples(st.integers(0, 2), st.integers(0, 2))))
    return channels, width, kernel, size, stride, padding, draw(st.booleans()), draw(st.booleans()), draw(st.booleans())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(case=convolutions(), batch=st.integers(1, 3))
def test_the_thin_gradient_is_autograds(dtype, case, batch):
    channels, width, kernel, size, stride, padding, bias, last_in, last_out = case
    source = generator(0)
    x = torch.randn(batch, channels, *size, generator=source, dtype=dtype)
    weight = torch.randn(width, channels, *kernel, generator=source, dtype=dtype)
    offset = torch.randn(width, generator=source, dtype=dtype) if bias else None
    if last_in:
        x = x.contiguous(memory_format=torch.channels_last)
    results = []
    for thin in (False, True):
        z = x.clone().requires_grad_()
        if thin:
            with FastGradients():
                out = F.conv2d(z, weight, offset, stride=stride, padding=padding)
            assert "Thin" in type(out.grad_fn).__name__ or channels > 4
        else:
            out = F.conv2d(z, weight, offset, stride=stride, padding=padding)
        c = torch.randn(out.shape, generator=generator(1), dtype=dtype)
        if last_out:
            c = c.contiguous(memory_format=torch.channels_last)
        (gradient,) = torch.autograd.grad(out, z, c)
        results.append((out.detach(), gradient))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    atol = 1e-4 if dtype == torch.float32 else 1e-11
    assert torch.allclose(results[0][1], results[1][1], atol=atol)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 4, 3, groups=2),
        nn.Conv2d(2, 4, 3, dilation=2),
        nn.Conv2d(2, 4, 3, padding="same"),
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 4, 3, stride=2, bias=False),
        nn.Conv2d(8, 4, 3),
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 3), nn.ReLU()),
    ],
)
def test_any_convolution_may_be_met_in_the_context(layer):
    channels = layer.in_channels if isinstance(layer, nn.Conv2d) else 1
    x = torch.randn(3, channels, 7, 7, generator=generator(0))
    gradients = []
    for thin in (False, True):
        z = x.clone().requires_grad_()
        if thin:
            with FastGradients():
                (gradient,) = torch.autograd.grad(layer(z).square().sum(), z)
        else:
            (gradient,) = torch.autograd.grad(layer(z).square().sum(), z)
        gradients.append(gradient)
    assert torch.allclose(*gradients, atol=1e-4)


def test_an_unbatched_image_is_left_to_torch():
    z = torch.randn(1, 5, 5, generator=generator(0)).requires_grad_()
    with FastGradients():
        out = F.conv2d(z, torch.ones(1, 1, 2, 2))
    assert "Thin" not in type(out.grad_fn).__name__


def test_a_gradient_that_is_one_number_repeated_works():
    z = torch.randn(2, 1, 5, 5, generator=generator(0)).requires_grad_()
    weight = torch.randn(3, 1, 3, 3, generator=generator(1))
    with FastGradients():
        out = F.conv2d(z, weight)
    (thin,) = torch.autograd.grad(out.sum(), z)
    (plain,) = torch.autograd.grad(F.conv2d(z, weight).sum(), z)
    assert torch.allclose(thin, plain, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_arranging_changes_memory_and_no_value(channels):
    x = torch.rand(2, channels, 4, 5, generator=generator(0))
    found = channels_last(x)
    assert torch.equal(found, x)
    assert found.shape == x.shape
    assert found.stride() == (20 * channels, 1, 5 * channels, channels)
    assert torch.equal(channels_last(x[:, :, ::2]), x[:, :, ::2])
    assert torch.equal(channels_last(x.transpose(2, 3)), x.transpose(2, 3))


class Viewing(nn.Module):
    """Flattens by ``view``, which refuses channels-last memory."""

    def __init__(self, channels=1):
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.linear = nn.Conv2d(channels, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, x):
        return self.linear(self.convolution(x).relu().view(x.shape[0], -1))


class Flattening(Viewing):
    """The same by ``flatten``."""

    def forward(self, x):
        return self.linear(self.convolution(x).relu().flatten(1))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_that_views_works_and_gets_the_same_result(channels):
    x = torch.rand(5, channels, 8, 8, generator=generator(0))
    viewing, flattening = Viewing(channels), Flattening(channels)
    flattening.load_state_dict(viewing.state_dict())
    assert not prefers_channels_last(viewing, x)
    assert prefers_channels_last(flattening, x)
    y = viewing(x).argmax(1)
    for name in ("fgsm", "bim", "pgd", "noise", "transfer"):
        one, other = (sw.attack(name)(model, x, y, within=sw.Linf(0.05)) for model in (viewing, flattening))
        assert torch.allclose(one.margin, other.margin, atol=1e-4)
        assert one.x_adv.is_contiguous()
        assert other.x_adv.is_contiguous()


def test_channels_last_weights_and_inputs_work():
    x = torch.rand(5, 3, 8, 8, generator=generator(0))
    plain, turned = Flattening(3), Flattening(3).to(memory_format=torch.channels_last)
    y = plain(x).argmax(1)
    one = sw.attack("bim")(plain, x, y, within=sw.Linf(0.05))
    other = sw.attack("bim")(turned, x.contiguous(memory_format=torch.channels_last), y, within=sw.Linf(0.05))
    assert torch.allclose(one.margin, other.margin, atol=1e-4)


@st.composite
def pooled(draw):
    batch, channels = draw(st.integers(1, 4)), draw(st.integers(1, 20))
    size = (2 * draw(st.integers(1, 5)), 2 * draw(st.integers(1, 5)))
    return batch, channels, size, draw(st.booleans()), draw(st.integers(1, 3)), draw(st.booleans())


def _stack(x, rectify):
    return F.max_pool2d(F.relu(x) if rectify else x, 2)


@hypothesis.given(case=pooled())
def test_pooling_is_torchs_bit_for_bit_ties_and_nan_included(case):
    batch, channels, size, rectify, levels, nan = case
    # Few levels make ties; the first of equals gets the gradient.
    x = torch.randint(-levels, levels + 1, (batch, channels, *size), generator=generator(0)).float()
    if nan:
        x[0, 0, 0, 0] = torch.nan
    x = x.contiguous(memory_format=torch.channels_last)
    c = torch.randn(batch, channels, size[0] // 2, size[1] // 2, generator=generator(1))
    results = []
    for fast in (False, True):
        z = x.clone().requires_grad_()
        if fast:
            with FastGradients():
                out = _stack(z, rectify)
            assert "Halving" in type(out.grad_fn).__name__ or not jit.available()
        else:
            out = _stack(z, rectify)
        results.append((out.detach(), torch.autograd.grad(out, z, c)[0]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.MaxPool2d(3, 2), (2, 3, 8, 8)),
        (nn.MaxPool2d(2, 1), (2, 3, 8, 8)),
        (nn.MaxPool2d(2, padding=1), (2, 3, 8, 8)),
        (nn.MaxPool2d(2, ceil_mode=True), (2, 3, 7, 7)),
        (nn.MaxPool2d(2), (2, 3, 7, 6)),
        (nn.MaxPool2d((2, 3)), (2, 3, 6, 6)),
        (nn.MaxPool2d(2), (3, 6, 6)),
        (nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2)), (2, 3, 6, 6)),
        (nn.Sequential(nn.ReLU(), nn.Tanh(), nn.MaxPool2d(2)), (2, 3, 6, 6)),
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_any_pooling_may_be_met_in_the_context(pool, shape, last):
    x = torch.randn(shape, generator=generator(0))
    if last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    found = []
    for fast in (False, True):
        z = x.clone().requires_grad_()
        if fast:
            with FastGradients():
                out = pool(z * 2)
        else:
            out = pool(z * 2)
        found.append((out.detach(), torch.autograd.grad(out.square().sum(), z)[0]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)


def test_a_rectified_tensor_used_twice_keeps_both_gradients():
    x = torch.randn(2, 3, 4, 4, generator=generator(0)).contiguous(memory_format=torch.channels_last)
    found = []
    for fast in (False, True):
        z = x.clone().requires_grad_()
        with FastGradients() if fast else contextlib.nullcontext():
            rectified = F.relu(z)
            value = (F.max_pool2d(rectified, 2).sum() + rectified.square().sum()).sum()
        found.append(torch.autograd.grad(value, z)[0])
    assert torch.allclose(*found, atol=1e-6)


def test_without_numba_the_plain_operators_serve(monkeypatch):
    monkeypatch.setattr(jit, "available", lambda: False)
    x = torch.randn(2, 1, 6, 6, generator=generator(0))
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    z = channels_last(x).requires_grad_()
    with FastGradients():
        out = model(z)
    (found,) = torch.autograd.grad(out.sum(), z)
    (plain,) = torch.autograd.grad(model(z).sum(), z)
    assert torch.allclose(found, plain, atol=1e-6)


def test_the_batch_keeps_activations_small():
    wide = nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3)
    )
    x = torch.rand(4, 1, 28, 28, generator=generator(0))
    assert fitting_batch(wide, x) == (16 << 20) // (64 * 28 * 28 * 4)
    assert fitting_batch(nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), x) == 512
    assert not any(module._forward_hooks for module in wide.modules())


@pytest.mark.parametrize(
    "flatten", [lambda z: z.flatten(1), lambda z: torch.flatten(z, 1), lambda z: z.reshape(len(z), -1), nn.Flatten()]
)
def test_gradients_of_flattened_images_keep_their_layout(flatten):
    x = channels_last(torch.randn(3, 4, 5, 6, generator=generator(0)))
    c = torch.randn(3, 120, generator=generator(1))
    found = []
    for fast in (False, True):
        seen, z = [], x.clone().requires_grad_()
        with FastGradients() if fast else contextlib.nullcontext():
            middle = z.sin()
            middle.register_hook(seen.append)
            out = flatten(middle)
        found.append((out.detach(), *torch.autograd.grad(out, z, c)))
        assert seen[0].is_contiguous(memory_format=torch.channels_last) == fast
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_channels_last_images_that_are_misread_stay_channels_first():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, (3, 4), (1, 2)), nn.Flatten(), nn.Linear(24, 3)).eval()
    x = torch.rand(6, 1, 8, 5, generator=generator(0))
    # With channels last, torch 2.13 reads beyond these images: wrong numbers, or the process ends.
    assert not prefers_channels_last(model, x[:2])
    assert prefers_channels_last(model[0], torch.rand(2, 1, 8, 6))
    assert prefers_channels_last(nn.Conv2d(1, 4, (3, 4)), torch.rand(2, 1, 8, 4))
    assert prefers_channels_last(nn.Conv2d(2, 4, (3, 4), (1, 2)), torch.rand(2, 2, 8, 4))
    assert not any(layer._forward_pre_hooks for layer in model)
    result = sw.attack("pgd")(model, x, model(x).argmax(1), within=sw.Linf(0.1))
    top = model(result.x_adv).topk(2).values
    assert torch.allclose(result.margin.abs(), (top[:, 0] - top[:, 1]), atol=1e-5)


def test_a_spiking_network_that_computes_anew_is_asked_for_its_layout():
    strided = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    model = SpikingNetwork(Direct(2), with_neurons(strided, 2, lambda path: LIF()), 2).eval()
    model.recompute = True
    assert prefers_channels_last(model, torch.rand(2, 1, 8, 8))
    assert model.recompute
