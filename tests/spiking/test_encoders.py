"""Encoders: means, gradients, independence, and the modes of their noise."""

import itertools

import pytest
import torch

from stalwart.core.errors import InputError, UsageError
from stalwart.core.noise import is_random, noise
from stalwart.spiking import Direct, EventFrames, Gaussian, Latency, Poisson, Quantised

PIXELS = torch.tensor([[0.0, 0.1, 0.5, 0.75, 1.0]])


@pytest.mark.parametrize("rate", [1.0, 0.9])
@pytest.mark.parametrize("signed", [True, False])
def test_poisson_means(signed, rate):
    encoder = Poisson(2000, signed=signed, rate=rate)
    with noise(encoder, seed=0):
        spikes = encoder(PIXELS)[:, 0]
    mean = rate * (2 * PIXELS[0] - 1 if signed else PIXELS[0])
    error = (spikes.var(0) / len(spikes)).sqrt()
    assert ((spikes.mean(0) - mean).abs() <= 4 * error + 1e-6).all()
    assert set(spikes.unique().tolist()) == ({-1.0, 0.0, 1.0} if signed else {0.0, 1.0})


def test_poisson_draws_afresh_for_each_sample_step_and_call():
    encoder = Poisson(50)
    x = torch.full((3, 8), 0.7)
    with noise(encoder, seed=1):
        one, two = encoder(x), encoder(x)
    assert not torch.equal(one, two)
    assert not torch.equal(one[:, 0], one[:, 1])
    assert not torch.equal(one[0], one[1])
    assert is_random(encoder)


def test_poisson_obeys_the_noise_modes():
    encoder = Poisson(50)
    x = torch.full((3, 8), 0.7)
    with noise(encoder, "off"):
        assert torch.allclose(encoder(x), torch.full((50, 3, 8), 0.4))
        assert not is_random(encoder)
    with noise(encoder, "fixed", seed=2):
        assert torch.equal(encoder(x), encoder(x))
        assert torch.equal(encoder(x)[:, 0], encoder(x)[:, 2])


def test_straight_through_is_exact_where_the_output_is_affine():
    # E f of spikes has the derivative Σ_t E[f(y_i = 1) - f(y_i = 0)]: for an affine f the straight-through one.
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
    x = torch.tensor([[0.2, 0.4, 0.6, 0.9]], requires_grad=True)
    encoder = Poisson(3, signed=False)
    (encoder(x) @ weights).sum().backward()
    assert torch.allclose(x.grad[0], 3 * weights)
    signed = torch.tensor([[0.2, 0.5, 0.6, 0.9]], requires_grad=True)
    (Poisson(3)(signed) @ weights).sum().backward()
    assert torch.allclose(signed.grad[0], 6 * weights)


def test_straight_through_is_biased_where_the_output_is_not_affine():
    # f(y) = y_1 y_2 in one step: dE f/dx_1 = x_2, and straight through averages y_2: the same mean, so unbiased; the square
    # of their sum is not: E has derivative 1 + 2 x_2, straight through 2 (x_1 + x_2).
    x = torch.tensor([[0.3, 0.6]])
    exact = 0.0
    for second in (0.0, 1.0):
        chance = x[0, 1] if second else 1 - x[0, 1]
        exact += float(chance) * ((1 + second) ** 2 - second**2)
    assert exact == pytest.approx(1 + 2 * 0.6)
    encoder, total = Poisson(1, signed=False), 0.0
    with noise(encoder, seed=0):
        leaf = x.expand(20000, 2).clone().requires_grad_()
        encoder(leaf).sum(2).square().sum().backward()
        total = float(leaf.grad[:, 0].mean())
    assert total == pytest.approx(2 * (0.3 + 0.6), abs=0.05)
    assert abs(total - exact) > 0.3


def test_direct_takes_no_memory():
    x = torch.rand(2, 3)
    encoded = Direct(7)(x)
    assert encoded.shape == (7, 2, 3)
    assert encoded.stride(0) == 0
    assert encoded.data_ptr() == x.data_ptr()


def test_gaussian_noise_has_its_deviation():
    encoder = Gaussian(500, sigma=0.2)
    with noise(encoder, seed=0):
        encoded = encoder(torch.full((1, 20), 0.5))
    assert float(encoded.std()) == pytest.approx(0.2, rel=0.05)
    with noise(encoder, "off"):
        assert (encoder(torch.full((1, 20), 0.5)) == 0.5).all()


def test_latency_by_hand():
    spikes = Latency(5)(PIXELS)[:, 0]
    assert spikes.sum(0).tolist() == [0, 1, 1, 1, 1]
    assert spikes.argmax(0).tolist() == [0, 4, 2, 1, 0]
    x = PIXELS.clone().requires_grad_()
    weights = torch.arange(5.0)[:, None, None]
    (Latency(5)(x) * weights).sum().backward()
    assert x.grad[0].tolist() == [4, 4, 2, 1, 0]


def test_event_frames():
    frames = torch.rand(2, 3, 2, 4, 4)
    assert torch.equal(EventFrames(3)(frames)[1, 0], frames[0, 1])
    with pytest.raises(InputError, match="takes 4 frames"):
        EventFrames(4)(frames)


@pytest.mark.parametrize(
    ("kind", "steps"), list(itertools.product((Direct, Poisson, Gaussian, Latency, EventFrames), (0, True)))
)
def test_steps_are_checked(kind, steps):
    with pytest.raises(UsageError, match="at least 1 time step"):
        kind(steps)


def test_ranges_are_checked():
    with pytest.raises(UsageError, match="rate of Poisson"):
        Poisson(3, rate=1.2)
    with pytest.raises(UsageError, match="sigma must be positive"):
        Gaussian(3, sigma=0.0)


def test_quantised_inputs_have_so_many_levels_and_the_gradient_of_the_identity():
    x = torch.linspace(0, 1, 101).unsqueeze(0).requires_grad_()
    encoder = Quantised(Direct(3), bits=2)
    out = encoder(x)
    assert out.shape == (3, 1, 101)
    assert torch.allclose(out.unique(), torch.tensor([0, 1 / 3, 2 / 3, 1]))
    assert (out[0] - x).abs().max() <= 1 / 6 + 1e-6
    out.sum().backward()
    assert torch.allclose(x.grad, torch.full_like(x, 3.0))
    with pytest.raises(UsageError, match="1 to 16 bits"):
        Quantised(Direct(3), bits=0)
