"""R+FGSM: both steps by hand, what it must break, results inside the set."""

import copy

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import stalwart as sw
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import derive, generator

RADII = torch.tensor([0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0], dtype=torch.float64)
WIDE = {"low": -100.0, "high": 100.0}


def by_hand(model, x, y, eps, share, seed):
    """Return both points x' and x''."""
    noise = torch.randn(x.shape, generator=generator(derive(seed, "chunk", 0), "start"), dtype=x.dtype)
    first = (x + share * eps * noise.sign()).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(first), y), first)
    second = first.detach() + (1 - share) * eps * gradient.sign()
    return first.detach(), torch.minimum(torch.maximum(second, x - eps), x + eps).clamp(0, 1)


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_both_steps_by_hand(digits, share):
    model, x, y = digits
    model, x = copy.deepcopy(model).double(), x.double()
    eps = torch.linspace(0, 0.2, 60, dtype=torch.float64)
    options = {} if share == 0.5 else {"share": share}
    result = sw.attack("rfgsm", **options)(model, x, y, within=sw.Linf(eps), seed=4)
    first, second = by_hand(model, x, y, eps[:, None, None, None], share, seed=4)
    lucky = model(first).argmax(1) != y
    rises = F.cross_entropy(model(second), y, reduction="none") > F.cross_entropy(model(first), y, reduction="none")
    second_step = ~lucky & rises
    assert second_step.sum() > 40
    assert torch.allclose(result.x_adv[second_step], second[second_step], atol=1e-9)
    assert torch.allclose(result.x_adv[~second_step], first[~second_step], atol=1e-9)
    assert (result.cost.backwards == 1).all()


@pytest.mark.parametrize("seed", range(3))
def test_it_breaks_what_half_a_step_behind_a_random_corner_breaks(linear_case, seed):
    model, x, y, worst = linear_case(2, seed)
    result = sw.attack("rfgsm")(model, x, y, within=sw.Linf(RADII, **WIDE), seed=seed)
    noise = torch.randn(x.shape, generator=generator(derive(seed, "chunk", 0), "start"), dtype=x.dtype).sign()
    slope = (model.weight[1 - y] - model.weight[y]).detach()
    clean = worst(torch.zeros(8, dtype=torch.float64), 1)
    at_corner = clean - RADII / 2 * (slope * noise).sum(1)
    least = at_corner - RADII / 2 * slope.abs().sum(1)
    assert torch.equal(result.success, (least <= 0) | (at_corner <= 0))
    held = ~result.success
    assert 0 < held.sum() < 8, "both outcomes must occur for this test to mean anything"
    assert torch.allclose(result.margin[held], least[held], atol=1e-9)
    assert (result.margin >= worst(RADII, 1) - 1e-9).all()


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    st.sampled_from([(5,), (2, 3), (1, 4, 4), (3, 5, 2)]),
    st.lists(st.sampled_from([0.0, 1e-5, 0.03, 0.3, 5.0]), min_size=1, max_size=5),
    st.floats(0.01, 0.99),
    st.integers(2, 4),
    st.integers(0, 99),
)
def test_results_are_in_the_set(shape, eps, share, classes, seed):
    torch.manual_seed(0)
    width = int(torch.tensor(shape).prod())
    model = nn.Sequential(nn.Flatten(), nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, classes))
    x = torch.rand(len(eps), *shape, generator=generator(seed))
    y = torch.arange(len(eps)) % classes
    result = sw.attack("rfgsm", share=share)(model, x, y, within=sw.Linf(eps), seed=seed, batch_size=3)
    change = (result.x_adv.double() - x.double()).flatten(1).abs().amax(1)
    assert (change <= torch.tensor(eps) + 1e-6).all()
    assert ((result.x_adv >= 0) & (result.x_adv <= 1)).all()
    assert torch.equal(result.success, result.margin <= 0)


def test_other_sets_are_refused(digits):
    model, x, y = digits
    with pytest.raises(InputError, match="linf balls, not in L2.*use fgsm"):
        sw.attack("rfgsm")(model, x, y, within=sw.L2(0.1))
    assert not sw.attack("rfgsm").fits(model, sw.L2(0.1))
    assert sw.attack("rfgsm").fits(model, sw.Linf(0.1))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2.0])
def test_bad_options(share):
    with pytest.raises(UsageError, match=r"share must lie in \(0, 1\)"):
        sw.attack("rfgsm", share=share)
