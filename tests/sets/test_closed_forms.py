"""Each set against an oracle: closed forms, brute force, a general-purpose solver."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch

from stalwart.core.random import generator
from stalwart.sets import L0, L2, Linf

DOUBLE = torch.float64


def test_linf_by_hand():
    x, c = torch.tensor([[0.05, 0.5, 0.95]]), torch.tensor([[-1.0, 2.0, 3.0]])
    within = Linf(0.1)
    torch.testing.assert_close(within.project(x, torch.tensor([[-9.0, 0.55, 9.0]])), torch.tensor([[0.0, 0.55, 1.0]]))
    torch.testing.assert_close(within.support(x, c), torch.tensor([2 * 0.6 + 3 * 1.0]))
    assert within.steepest(c).tolist() == [[-1.0, 1.0, 1.0]]
    assert within.scale == 0.1


def test_l2_by_hand():
    x, within = torch.full((1, 2), 0.5), L2(0.5)
    torch.testing.assert_close(within.project(x, torch.tensor([[3.5, 4.5]])), torch.tensor([[0.8, 0.9]]))
    torch.testing.assert_close(within.support(x, torch.tensor([[3.0, 4.0]])), torch.tensor([3.5 + 0.5 * 5]))
    torch.testing.assert_close(within.steepest(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.6, 0.8]]))
    # Near a corner the face x_1 = 1 stops the first coordinate and the second takes what is left of the radius.
    corner = torch.tensor([[0.9, 0.5]], dtype=DOUBLE)
    expected = 1.0 + 0.1 * (0.5 + (0.25 - 0.01) ** 0.5)
    torch.testing.assert_close(
        within.support(corner, torch.tensor([[1.0, 0.1]], dtype=DOUBLE)), torch.tensor([expected], dtype=DOUBLE)
    )


def test_l2_keeps_constant_shifts_of_large_images_inside():
    # Every coordinate rounds the same way here, the worst case of float32: plain rescaling ends 1e-5 outside.
    x = torch.full((2, 3, 256, 256), 0.96)
    z = x + torch.tensor([0.02, 1e10]).reshape(2, 1, 1, 1)
    for eps in (0.1, 0.5, 1.0):
        point = L2(eps).project(x, z)
        assert L2(eps).contains(x, point).all()
        assert ((point[:1].double() - x[:1].double()).norm() > 0.999 * eps).all()


@pytest.mark.parametrize("seed", range(8))
def test_l2_support_against_a_general_solver(seed):
    source = generator(seed)
    x = torch.rand(1, 6, generator=source, dtype=DOUBLE)
    c = torch.randn(1, 6, generator=source, dtype=DOUBLE)
    c[0, 0] *= 1e-3
    eps = float(0.05 + 1.2 * torch.rand((), generator=source))
    centre, slope = x[0].numpy(), c[0].numpy()
    solved = scipy.optimize.minimize(
        lambda z: -slope @ z,
        centre,
        jac=lambda z: -slope,
        bounds=[(0, 1)] * 6,
        constraints={
            "type": "ineq",
            "fun": lambda z: eps**2 - ((z - centre) ** 2).sum(),
            "jac": lambda z: 2 * (centre - z),
        },
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert float(L2(eps).support(x, c)) == pytest.approx(-solved.fun, rel=1e-6)
    assert float(L2(eps).support(x, c)) >= -solved.fun - 1e-7
    assert float(L2(eps).support(x.float(), c.float())) == pytest.approx(-solved.fun, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_l2_support_at_any_scale_of_the_coefficients(scale):
    x, c = torch.rand(4, 30, generator=generator(0)), torch.randn(4, 30, generator=generator(1))
    c[0] = 0.0
    c[1, 5:] = 0.0
    small = L2(0.7).support(x.double(), c.double())
    torch.testing.assert_close(L2(0.7).support(x, c * scale).double(), small * scale, rtol=1e-5, atol=1e-6 * scale)
    # A ball that holds the whole box reduces to the corner of the box.
    whole = c.clamp_min(0).sum(1)
    torch.testing.assert_close(L2(100.0).support(x, c), whole)
    assert (L2(100.0).support(x, c).double() >= c.double().clamp_min(0).sum(1)).all()


def test_l2_samples_fill_the_ball_uniformly():
    x = torch.full((4000, 2), 0.5)
    radius = (L2(0.3).sample(x, generator(0)) - x).norm(dim=1)
    # A uniform disc holds a quarter of its area within half its radius; 4000 draws have standard error 0.007.
    assert float((radius < 0.15).float().mean()) == pytest.approx(0.25, abs=0.03)
    inner = (Linf(0.3).sample(x, generator(0)) - x).abs() < 0.15
    assert float(inner.float().mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("shape", [(5,), (2, 2, 2), (2, 5)])
@pytest.mark.parametrize("pixels", [1, 2, 7])
def test_l0_against_all_choices_of_locations(shape, pixels):
    source = generator(pixels, *shape)
    x = torch.rand(1, *shape, generator=source, dtype=DOUBLE)
    c = torch.randn(1, *shape, generator=source, dtype=DOUBLE)
    z = (x + torch.randn(1, *shape, generator=source, dtype=DOUBLE)).clamp(0, 1)
    spots = list(np.ndindex(*shape[1:])) if len(shape) == 3 else list(np.ndindex(*shape))
    best, nearest = -np.inf, np.inf
    for chosen in itertools.combinations(spots, min(pixels, len(spots))):
        mask = torch.zeros(shape, dtype=torch.bool)
        for spot in chosen:
            mask[(slice(None), *spot) if len(shape) == 3 else spot] = True
        best = max(best, float(torch.where(mask, torch.maximum(c, torch.zeros_like(c)), c * x).sum()))
        nearest = min(nearest, float((torch.where(mask, z, x) - z).norm()))
    within = L0(pixels)
    assert float(within.support(x, c)) == pytest.approx(best, rel=1e-12)
    assert float((within.project(x, z) - z).norm()) == pytest.approx(nearest, abs=1e-12)


def test_l0_counts_a_pixel_once_for_all_its_channels():
    x = torch.full((2, 3, 4, 4), 0.5)
    z = x.clone()
    z[:, :, 1, 2] = 1.0
    z[1, 0, 3, 3] = 0.0
    assert L0(1).contains(x, z).tolist() == [True, False]
    assert L0([1, 2]).contains(x, z).all()
    changed = (L0(3).sample(x, generator(0)) != x).any(1).flatten(1).sum(1)
    assert changed.tolist() == [3, 3]
    lower, upper = L0([0, 1]).bounds(x)
    assert lower[0].unique().tolist() == upper[0].unique().tolist() == [0.5]
    assert (lower[1].unique().tolist(), upper[1].unique().tolist()) == ([0.0], [1.0])
