"""Linear models: the worst point of each set, and so what every attack can and must reach, is known exactly."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

import stalwart as sw
from stalwart.core.random import generator

WIDE = {"low": -100.0, "high": 100.0}
"""A box that never binds, so that the ball alone counts."""


def linear(classes, width=6, seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(width, classes).double()
    x = torch.randn(8, width, generator=generator(seed), dtype=torch.float64)
    return model, x, model(x).argmax(1)


def differences(model, y):
    """Return w_j - w_y [B, K, D] and the clean logit differences z_j - z_y can be read off with it."""
    return model.weight.detach()[None] - model.weight.detach()[y][:, None]


def clean_gaps(model, x, y):
    logits = model(x).detach()
    return logits - logits.gather(1, y[:, None])


def worst_margin(model, x, y, eps, dual):
    """Return the least z_y - max_{j != y} z_j over the ball: min_j [(z_y - z_j) - eps * ||w_j - w_y||_dual]."""
    reach = clean_gaps(model, x, y) + eps[:, None] * differences(model, y).norm(p=dual, dim=2)
    return -reach.scatter(1, y[:, None], -torch.inf).amax(1)


RADII = torch.tensor([0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_fgsm_moves_a_binary_margin_by_eps_times_the_l1_norm(seed):
    model, x, y = linear(2, seed=seed)
    result = sw.attack("fgsm")(model, x, y, within=sw.Linf(RADII, **WIDE))
    oracle = worst_margin(model, x, y, RADII, 1)
    assert torch.equal(result.success, oracle <= 0)
    assert torch.allclose(result.margin, oracle, atol=1e-9)
    w = model.weight.detach()
    by_hand = (w[0] - w[1]).abs().sum() * RADII
    clean = (model(x)[:, 0] - model(x)[:, 1]).abs().detach()
    assert torch.allclose(clean - result.margin, by_hand, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "targeted-ce", "targeted-margin"])
@pytest.mark.parametrize("ball", [(sw.Linf, 1), (sw.L2, 2)])
def test_pgd_breaks_a_binary_sample_exactly_where_the_closed_form_says(seed, loss, ball):
    model, x, y = linear(2, seed=seed)
    kind, dual = ball
    result = sw.attack("pgd", loss=loss, steps=30, relative_step=1.0)(model, x, y, within=kind(RADII, **WIDE))
    oracle = worst_margin(model, x, y, RADII, dual)
    assert torch.equal(result.success, oracle <= 0)
    held = ~result.success
    assert 0 < held.sum() < len(x), "both outcomes must occur for this test to mean anything"
    # A sample that is broken stops at once; all others go to the worst point itself.
    assert torch.allclose(result.margin[held], oracle[held], atol=1e-5)
    assert (result.margin >= oracle - 1e-9).all()


@pytest.mark.parametrize("classes", [3, 5])
@pytest.mark.parametrize("ball", [(sw.Linf, 1), (sw.L2, 2)])
def test_targeted_restarts_find_the_exact_answer_for_many_classes(classes, ball):
    kind, dual = ball
    for seed in range(3):
        model, x, y = linear(classes, seed=seed)
        attack = sw.attack("pgd", loss="targeted-margin", restarts=classes - 1, steps=30, relative_step=1.0)
        result = attack(model, x, y, within=kind(RADII, **WIDE))
        oracle = worst_margin(model, x, y, RADII, dual)
        assert torch.equal(result.success, oracle <= 0)
        held = ~result.success
        assert torch.allclose(result.margin[held], oracle[held], atol=1e-5)


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "apgd", "noise", "transfer"])
@pytest.mark.parametrize("classes", [2, 4])
def test_no_attack_claims_more_than_is_possible(name, classes):
    model, x, y = linear(classes)
    for kind, dual in ((sw.Linf, 1), (sw.L2, 2)):
        result = sw.attack(name)(model, x, y, within=kind(RADII, **WIDE))
        oracle = worst_margin(model, x, y, RADII, dual)
        assert not (result.success & (oracle > 0)).any()
        assert (result.margin >= oracle - 1e-9).all()


def test_l2_steps_go_straight_to_the_nearest_point_of_the_sphere():
    model, x, y = linear(2)
    within = sw.L2(0.01, **WIDE)
    result = sw.attack("bim", steps=40)(model, x, y, within=within)
    w = model.weight.detach()[1 - y] - model.weight.detach()[y]
    assert torch.allclose(result.x_adv, x + 0.01 * w / w.norm(dim=1, keepdim=True), atol=1e-9)


def test_the_box_binds_too():
    model, _, _ = linear(2)
    x = torch.rand(8, 6, generator=generator(1), dtype=torch.float64)
    y = model(x).argmax(1)
    result = sw.attack("bim", steps=10)(model, x, y, within=sw.Linf(0.3))
    w = model.weight.detach()[1 - y] - model.weight.detach()[y]
    corner = torch.where(w > 0, (x + 0.3).clamp_max(1), (x - 0.3).clamp_min(0))
    gap = -((corner * w).sum(1) + model.bias.detach()[1 - y] - model.bias.detach()[y])
    assert torch.equal(result.success, gap <= 0)
    assert torch.allclose(result.margin[gap > 0], gap[gap > 0], atol=1e-9)


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "noise", "transfer"])
@pytest.mark.parametrize("within", [sw.Linf(0.0), sw.L2(0.0), sw.L0(0)])
def test_radius_zero_returns_the_input_and_the_clean_verdict(name, within, digits):
    model, x, y = digits
    result = sw.attack(name)(model, x, (y + (torch.arange(60) < 7)) % 4, within=within)
    assert torch.equal(result.x_adv, x)
    wrong = model(x).argmax(1) != (y + (torch.arange(60) < 7)) % 4
    assert torch.equal(result.success, wrong)


def test_a_tie_counts_as_broken():
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    result = sw.attack("pgd")(model, torch.full((3, 2), 0.5), torch.tensor([0, 1, 0]), within=sw.Linf(0.1))
    assert result.success.all()
    assert torch.equal(result.margin, torch.zeros(3))


@st.composite
def settings(draw):
    shape = draw(st.sampled_from([(5,), (2, 3), (1, 4, 4), (3, 5, 2)]))
    batch = draw(st.integers(1, 5))
    kind = draw(st.sampled_from([sw.Linf, sw.L2, sw.L0]))
    radius = st.integers(0, 4) if kind is sw.L0 else st.sampled_from([0.0, 1e-5, "8/255", 0.3, 5.0])
    per_sample = draw(st.booleans())
    eps = [draw(radius) for _ in range(batch)] if per_sample else draw(radius)
    low, high = draw(st.sampled_from([(0.0, 1.0), (-2.0, 3.0), (0.0, 255.0)]))
    options = draw(
        st.sampled_from(
            [
                ("fgsm", {}),
                ("fgsm", {"random_start": True}),
                ("bim", {"steps": 3, "step": 0.1}),
                ("pgd", {"steps": 3}),
                ("pgd", {"steps": 2, "restarts": 3, "loss": "margin", "relative_step": 2.0}),
                ("pgd", {"steps": 2, "loss": "targeted-ce", "restarts": 2}),
                ("noise", {"trials": 3}),
                ("noise", {"kind": "uniform"}),
                ("transfer", {"options": {"steps": 2}}),
            ]
        )
    )
    return shape, batch, kind(eps, low=low, high=high), options, draw(st.integers(0, 99)), draw(st.integers(1, 5))


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(settings())
def test_results_are_in_the_set_for_any_shape_and_radius(case):
    shape, batch, within, (name, options), seed, batch_size = case
    torch.manual_seed(0)
    width = int(torch.tensor(shape).prod())
    model = nn.Sequential(nn.Flatten(), nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, 3))
    x = within.low + (within.high - within.low) * torch.rand(batch, *shape, generator=generator(seed))
    x.flatten()[0] = within.low
    y = torch.arange(batch) % 3
    result = sw.attack(name, **options)(model, x, y, within=within, seed=seed, batch_size=batch_size)
    assert result.x_adv.shape == x.shape
    assert result.x_adv.dtype == x.dtype
    assert not result.x_adv.requires_grad
    assert within.contains(x, result.x_adv).all()
    wide, change = result.x_adv.double(), (result.x_adv - x).double().flatten(1)
    radius = torch.as_tensor(within.radius, dtype=torch.float64).expand(batch)
    scale = max(1.0, abs(within.low), abs(within.high))
    assert (wide >= within.low).all()
    assert (wide <= within.high).all()
    if isinstance(within, sw.Linf):
        assert (change.abs().amax(1) <= radius + 1e-6 * scale).all()
    elif isinstance(within, sw.L2):
        assert (change.norm(dim=1) <= radius + 1e-6 * scale).all()
    else:
        pixels = (change.view(x.shape) != 0).any(1) if x.dim() == 4 else change != 0
        assert (pixels.flatten(1).sum(1) <= radius).all()
    # What is reported is what the model says about x_adv.
    logits = model(result.x_adv).detach()
    own = logits.gather(1, y[:, None])[:, 0]
    other = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    assert torch.allclose(result.margin, own - other, atol=1e-4 * scale)
    assert torch.equal(result.success, result.margin <= 0)
