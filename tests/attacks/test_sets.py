"""Attacks in l1 balls and in boxes: results stay inside, and linear models are attacked as well as the set allows."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

import stalwart as sw
from stalwart.core.random import generator
from stalwart.sets import L1, Box, Linf

ATTACKS = {
    "fgsm": {},
    "bim": {"steps": 3},
    "pgd": {"steps": 3, "restarts": 2, "loss": "margin"},
    "noise": {"trials": 2},
    "transfer": {"options": {"steps": 2}},
}


def boxes(x, seed):
    """Return boxes around x that are not symmetric and hold some elements still."""
    below, above = torch.rand(2, *x.shape, generator=generator(seed, "ends"), dtype=torch.float64)
    return Box(x - 0.3 * below * (below > 0.3), x + 0.3 * above * (above > 0.3))


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    st.sampled_from([(5,), (1, 4, 4), (3, 5, 2)]),
    st.integers(1, 5),
    st.sampled_from(list(ATTACKS)),
    st.sampled_from([0.0, "8/255", 0.7, 12, "each", "box"]),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_results_are_in_the_set(shape, batch, name, size, batch_size, seed):
    torch.manual_seed(0)
    width = int(torch.tensor(shape).prod())
    model = nn.Sequential(nn.Flatten(), nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.rand(batch, *shape, generator=generator(seed))
    x.flatten()[0] = 0.0
    if size == "box":
        within = boxes(x, seed)
    else:
        within = L1([0.5 * i for i in range(batch)] if size == "each" else size)
    attack = sw.attack(name, **ATTACKS[name])
    result = attack(model, x, torch.arange(batch) % 3, within=within, seed=seed, batch_size=batch_size)
    assert result.x_adv.dtype == x.dtype
    assert within.contains(x, result.x_adv).all()
    assert (result.x_adv >= 0).all()
    assert (result.x_adv <= 1).all()
    if size != "box":
        change = (result.x_adv.double() - x.double()).abs().flatten(1).sum(1)
        assert (change <= torch.as_tensor(within.radius) + 1e-6 * max(1.0, within.size)).all()


def linear(shape=(6,)):
    torch.manual_seed(3)
    model = nn.Linear(6, 2).double()
    x = 0.2 + 0.6 * torch.rand(8, *shape, generator=generator(0), dtype=torch.float64)
    y = model(x).argmax(1)
    slope = (model.weight[1 - y] - model.weight[y]).detach()
    gap = (model(x).detach() * torch.where(y[:, None] == 0, torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0]))).sum(
        1
    )
    return model, x, y, slope, gap


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd"])
def test_one_coordinate_takes_the_whole_of_an_l1_radius(name):
    model, x, y, slope, gap = linear()
    # The dual norm of l1 is the largest coefficient; half of the radii do not reach the decision boundary.
    eps = torch.linspace(0, 2, 8, dtype=torch.float64) * gap / slope.abs().amax(1)
    options = {} if name == "fgsm" else {"steps": 30}
    result = sw.attack(name, **options)(model, x, y, within=L1(eps, low=-100.0, high=100.0))
    oracle = gap - eps * slope.abs().amax(1)
    assert torch.equal(result.success, oracle <= 0)
    held = ~result.success
    assert held.sum() == 4
    assert torch.allclose(result.margin[held], oracle[held], atol=1e-9)


def test_pgd_reaches_the_corner_of_a_box():
    model, x, y, slope, gap = linear()
    for seed in range(4):
        within = boxes(x, seed)
        result = sw.attack("pgd", steps=10)(model, x, y, within=within, seed=seed)
        oracle = gap - (within.support(x, slope) - (slope * x).sum(1))
        assert torch.equal(result.success, oracle <= 0)
        held = ~result.success
        assert held.any()
        assert torch.allclose(result.margin[held], oracle[held], atol=1e-9)


def test_the_box_of_an_linf_ball_is_attacked_alike():
    model, x, y, _, _ = linear()
    for name in ("fgsm", "bim"):
        ball = sw.attack(name)(model, x, y, within=Linf(0.05))
        box = sw.attack(name)(model, x, y, within=Box(x - 0.05, x + 0.05))
        torch.testing.assert_close(box.x_adv, ball.x_adv)


def test_boxes_of_other_inputs_are_refused():
    model, x, y, _, _ = linear()
    with pytest.raises(sw.StalwartError, match="outside its box; a box holds the clean input"):
        sw.attack("pgd")(model, x, y, within=boxes(x.flip(0), 0))


def test_pgd_in_l1_moves_on_when_its_best_coordinate_is_used_up():
    """Of a linear model the best attack is known; where [0, 1] binds, one coordinate cannot take the whole radius."""
    source = generator(7)
    x = torch.rand(6, 64, generator=source)
    weights = torch.randn(2, 64, generator=source)
    model = torch.nn.Linear(64, 2)
    with torch.no_grad():
        model.weight.copy_(weights)
    within = sw.L1(5.0)
    y = torch.zeros(6, dtype=torch.long)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([1e4, 0.0]))
    found = sw.attack("pgd", steps=100, loss="margin", random_start=False)(model, x, y, within=within, seed=0)
    c = (weights[1] - weights[0]).expand(6, -1)
    reached, best = (c * (found.x_adv - x)).sum(1), within.support(x, c) - (c * x).sum(1)
    assert (reached > 0.95 * best).all()
