"""The l1 ball against slow twins: a root finder, a general solver, a linear program."""

import hypothesis
import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import strategies as st

from stalwart.core.random import generator
from stalwart.sets import L1

DOUBLE = torch.float64
settings = hypothesis.settings(max_examples=40, deadline=None)


@st.composite
def cases(draw, most=9):
    low, high = draw(st.sampled_from([(0.0, 1.0), (-3.0, 0.5), (0.0, 255.0)]))
    batch, width = draw(st.integers(1, 3)), draw(st.integers(1, most))
    source = generator(draw(st.integers(0, 10**6)))
    x = low + (high - low) * torch.rand(batch, width, generator=source, dtype=DOUBLE)
    edge = torch.rand(x.shape, generator=source)
    x = torch.where(edge < 0.2, low, torch.where(edge > 0.8, high, x)).to(DOUBLE)
    z = x + draw(st.sampled_from([0.1, 1.0, 30.0])) * (high - low) * torch.randn(
        x.shape, generator=source, dtype=DOUBLE
    )
    if draw(st.booleans()):
        # Equal distances and coordinates that do not move at all.
        z = torch.where(edge.flip(1) < 0.5, x + 0.5 * (high - low) * (z - x).sign(), torch.where(edge < 0.1, x, z))
    eps = (high - low) * torch.rand(batch, generator=source) * draw(st.sampled_from([0.01, 0.7, 3.0]))
    return L1(eps, low=low, high=high), x, z, source


def by_root_finding(x, z, eps, low, high):
    """Return the projection of one z on ball and box by bisection on the multiplier."""

    def point(multiplier):
        return np.clip(x + np.sign(z - x) * np.maximum(np.abs(z - x) - multiplier, 0), low, high)

    def excess(multiplier):
        return np.abs(point(multiplier) - x).sum() - eps

    if excess(0.0) <= 0:
        return point(0.0)
    return point(scipy.optimize.brentq(excess, 0.0, np.abs(z - x).max(), xtol=1e-15, rtol=1e-14))


@settings
@hypothesis.given(cases(most=30))
def test_the_projection_is_what_a_root_finder_finds(case):
    within, x, z, _ = case
    found = within.project(x, z)
    size = within.high - within.low
    for i in range(len(x)):
        slow = by_root_finding(x[i].numpy(), z[i].numpy(), float(within.eps[i]), within.low, within.high)
        np.testing.assert_allclose(found[i].numpy(), slow, rtol=0, atol=1e-12 * size)
        narrow = within.select(slice(i, i + 1)).project(x[i : i + 1].float(), z[i : i + 1].float())
        np.testing.assert_allclose(narrow[0].numpy(), slow, rtol=0, atol=1e-5 * size)


@settings
@hypothesis.given(cases())
def test_no_point_of_the_set_is_nearer_than_the_projection(case):
    within, x, z, source = case
    found = within.project(x, z)
    assert torch.allclose(within.project(x, found), found, rtol=0, atol=1e-13 * (within.high - within.low))
    for _ in range(40):
        other = within.sample(x, source)
        # The projection on a convex set makes an obtuse angle with every other point of it.
        assert (((z - found) * (other - found)).sum(1) <= 1e-9 * (within.high - within.low) ** 2).all()
        assert ((z - found).norm(dim=1) <= (z - other).norm(dim=1) + 1e-9).all()


@settings
@hypothesis.given(cases())
def test_the_support_is_the_value_of_a_linear_program(case):
    within, x, _, source = case
    c = torch.randn(x.shape, generator=source, dtype=DOUBLE)
    c[:, 0] = -c[:, -1]
    found = within.support(x, c)
    for i, (centre, slope) in enumerate(zip(x.numpy(), c.numpy(), strict=True)):
        width = len(centre)
        # z - x = rise - fall, both at least 0 and at most the room towards their side; together at most eps.
        solved = scipy.optimize.linprog(
            np.concatenate([-slope, slope]),
            A_ub=np.ones((1, 2 * width)),
            b_ub=[float(within.eps[i])],
            bounds=[(0, room) for room in (*(within.high - centre), *(centre - within.low))],
        )
        size = np.abs(slope).sum() * max(abs(within.low), abs(within.high))
        assert float(found[i]) == pytest.approx(slope @ centre - solved.fun, abs=1e-9 * size)
        assert float(found[i]) >= slope @ centre - solved.fun - 1e-9 * size
        narrow = within.select(slice(i, i + 1)).support(x[i : i + 1].float(), c[i : i + 1].float())
        assert float(narrow) == pytest.approx(slope @ centre - solved.fun, abs=1e-5 * size)


def test_by_hand():
    x, within = torch.full((1, 3), 0.5), L1(0.4)
    # |d| = 0.9, 0.3, 0.1 less 0.4 is 0.5, 0, 0, whose sum is still too much: 0.9 - 0.5 = 0.4.
    z = x + torch.tensor([[0.9, -0.3, 0.1]])
    torch.testing.assert_close(within.project(x, z), torch.tensor([[0.9, 0.5, 0.5]]))
    # With the face at 0.6 the first takes 0.1 and the others share 0.3: less 0.05, 0.25 and 0.05.
    torch.testing.assert_close(L1(0.4, high=0.6).project(x, z), torch.tensor([[0.6, 0.25, 0.55]]))
    assert within.steepest(torch.tensor([[1.0, -3.0, 2.0], [0.0, 0.0, 0.0]])).tolist() == [[0, -1, 0], [0, 0, 0]]
    c = torch.tensor([[1.0, -3.0, 2.0]])
    torch.testing.assert_close(within.support(x, c), torch.tensor([0.4 * 3.0]))
    torch.testing.assert_close(L1(0.7).support(x, c), torch.tensor([0.5 * 3.0 + 0.2 * 2.0]))
    torch.testing.assert_close(L1(9.0).support(x, c), torch.tensor([3.0]))
    assert within.scale == 0.4


def test_no_number_of_roundings_leads_out_of_the_ball():
    # Rounding every coordinate of a large image to nearest would end 1e-3 outside.
    x = torch.full((2, 3, 256, 256), 0.96) - 1e-3 * torch.rand(2, 3, 256, 256, generator=generator(0))
    z = x + torch.tensor([0.02, 1e10]).reshape(2, 1, 1, 1)
    for eps in (0.1, 12.0, 3000.0):
        distance = (L1(eps).project(x, z).double() - x.double()).abs().flatten(1).sum(1)
        assert (distance <= eps * (1 + 1e-12)).all()
        assert (distance[:1] >= eps - 6e-8 * x[0].numel()).all()


@pytest.mark.parametrize("reach", [1.0, 1e3, 1e6, 1e9])
def test_far_points_spend_the_radius_and_no_more(reach):
    x = torch.rand(2, 20000, generator=generator(0), dtype=DOUBLE)
    z = x + reach * torch.randn(x.shape, generator=generator(1), dtype=DOUBLE)
    for eps in (1e-3, 1.0, 700.0):
        distance = (L1(eps).project(x, z) - x).abs().sum(1)
        torch.testing.assert_close(distance, torch.full((2,), eps, dtype=DOUBLE), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_the_support_at_any_scale_of_the_coefficients(scale):
    x, c = torch.rand(4, 30, generator=generator(0)), torch.randn(4, 30, generator=generator(1))
    c[0] = 0.0
    c[1, 5:] = 0.0
    small = L1(2.5).support(x.double(), c.double())
    torch.testing.assert_close(L1(2.5).support(x, c * scale).double(), small * scale, rtol=1e-5, atol=1e-6 * scale)
    # A ball that holds the whole box reduces to the corner of the box.
    assert (L1(100.0).support(x, c).double() >= c.double().clamp_min(0).sum(1)).all()
    torch.testing.assert_close(L1(100.0).support(x, c), c.clamp_min(0).sum(1))


def test_equal_coefficients_have_a_maximiser_as_gradient():
    x = torch.rand(2, 6, generator=generator(0), dtype=DOUBLE)
    c = torch.tensor([[1.0, 1.0, -1.0, 0.0, 1.0, -1.0]], dtype=DOUBLE).repeat(2, 1).requires_grad_()
    within = L1([0.4, 2.0])
    value = within.support(x, c)
    (best,) = torch.autograd.grad(value.sum(), c)
    assert within.contains(x, best, tolerance=1e-12).all()
    torch.testing.assert_close((best * c).sum(1), value)


def test_samples_fill_the_ball_uniformly():
    x = torch.full((4000, 2), 0.5)
    moved = L1(0.3).sample(x, generator(0)) - x
    distance = moved.abs().sum(1)
    # A quarter of the area of a square lies within half of it, and half of it within sqrt(1/2); standard error 0.008.
    assert float((distance < 0.15).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert float((distance < 0.3 * 0.5**0.5).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert float((moved[:, 0].abs() < moved[:, 1].abs()).float().mean()) == pytest.approx(0.5, abs=0.03)
    for sign in (-1, 1):
        assert float((moved.sign() == sign).float().mean()) == pytest.approx(0.5, abs=0.03)
