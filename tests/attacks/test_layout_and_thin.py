"""The fast paths of the CPU change no number."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import stalwart as sw
from stalwart.attacks.layout import arrange, prefers_channels_last
from stalwart.attacks.thin import ThinConvolutions
from stalwart.core.random import generator


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
            with ThinConvolutions():
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
            with ThinConvolutions():
                (gradient,) = torch.autograd.grad(layer(z).square().sum(), z)
        else:
            (gradient,) = torch.autograd.grad(layer(z).square().sum(), z)
        gradients.append(gradient)
    assert torch.allclose(*gradients, atol=1e-4)


def test_an_unbatched_image_is_left_to_torch():
    z = torch.randn(1, 5, 5, generator=generator(0)).requires_grad_()
    with ThinConvolutions():
        out = F.conv2d(z, torch.ones(1, 1, 2, 2))
    assert "Thin" not in type(out.grad_fn).__name__


def test_a_gradient_that_is_one_number_repeated_works():
    z = torch.randn(2, 1, 5, 5, generator=generator(0)).requires_grad_()
    weight = torch.randn(3, 1, 3, 3, generator=generator(1))
    with ThinConvolutions():
        out = F.conv2d(z, weight)
    (thin,) = torch.autograd.grad(out.sum(), z)
    (plain,) = torch.autograd.grad(F.conv2d(z, weight).sum(), z)
    assert torch.allclose(thin, plain, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_arranging_changes_memory_and_no_value(channels):
    x = torch.rand(2, channels, 4, 5, generator=generator(0))
    found = arrange(x)
    assert torch.equal(found, x)
    assert found.shape == x.shape
    assert found.stride() == (20 * channels, 1, 5 * channels, channels)
    assert torch.equal(arrange(x[:, :, ::2]), x[:, :, ::2])
    assert torch.equal(arrange(x.transpose(2, 3)), x.transpose(2, 3))


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
