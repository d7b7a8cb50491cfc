"""The loop: which iterate is kept, who leaves the batch, what is counted, what a seed fixes."""

import copy

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.core.random import derive


class Ridge(nn.Module):
    """One number x with margin (x - 0.6)^2 + 0.05: nearest to its border at 0.6, never across it."""

    def forward(self, x):
        margin = (x[:, 0] - 0.6).square() + 0.05
        return torch.stack([margin, torch.zeros_like(margin)], 1)


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_best_iterate_is_kept_not_the_last(loss, steps):
    x, y = torch.tensor([[0.5], [0.45]]), torch.tensor([0, 0])
    attack = sw.attack("bim", steps=steps, step=0.09, loss=loss)
    result = attack(Ridge(), x, y, within=sw.Linf(0.4))
    # By hand from 0.5: 0.5, 0.59, 0.68, 0.59, ... and from 0.45: 0.45, 0.54, 0.63, 0.54, ...
    nearest = [0.59, 0.54 if steps == 1 else 0.63]
    assert torch.allclose(result.x_adv[:, 0], torch.tensor(nearest), atol=1e-6)


def test_the_slow_twin_finds_the_same_points(digits, slow_pgd):
    model, x, y = digits
    model, x = copy.deepcopy(model).double(), x.double()  # so that no rounding flips a sign
    eps, steps = 0.02, 8
    result = sw.attack("pgd", steps=steps)(model, x, y, within=sw.Linf(eps), seed=11, batch_size=60)
    twin = slow_pgd(model, x, y, eps, steps, derive(11, "chunk", 0))
    held = ~result.success
    assert held.sum() > 30
    assert torch.allclose(result.x_adv[held], twin[held], atol=1e-6)
    assert not torch.allclose(result.x_adv[held], x[held], atol=eps / 2)


def test_broken_samples_leave_the_batch_and_stay_broken(digits, counting):
    model, x, y = digits
    within = sw.Linf(torch.linspace(0, 0.3, 60))
    counter = counting(model)
    result = sw.attack("pgd", steps=12)(counter, x, y, within=within)
    assert 5 < result.success.sum() < 55
    wrong_from_the_start = model(x).argmax(1) != y
    full = 12
    held = ~result.success
    assert (result.cost.backwards[held] == full).all()
    assert (result.cost.backwards[result.success] <= full).all()
    assert result.cost.backwards[result.success & (within.radius > 0.2)].double().mean() < full / 2
    assert (result.cost.backwards[wrong_from_the_start & (within.radius == 0)] <= 1).all()
    rows = counter.backwards
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < rows[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fgsm", {}),
        ("pgd", {"steps": 5}),
        ("pgd", {"steps": 4, "restarts": 3}),
        ("pgd", {"steps": 3, "restarts": 2, "loss": "targeted-margin"}),
        ("apgd", {"steps": 9}),
        ("apgd", {"steps": 5, "loss": "targeted-dlr", "targets": 2, "restarts": 2}),
        ("rfgsm", {}),
        ("square", {"queries": 9}),
        ("noise", {}),
        ("noise", {"trials": 4}),
        ("transfer", {"options": {"steps": 3}}),
        ("pgd", {"steps": 3, "eot": 2}),
    ],
)
@pytest.mark.parametrize("batch_size", [7, 60])
def test_costs_are_the_rows_that_really_went_through(digits, counting, name, options, batch_size):
    model, x, y = digits
    counter = counting(model)
    result = sw.attack(name, **options)(counter, x, y, within=sw.Linf(0.08), batch_size=batch_size)
    assert int(result.cost.forwards.sum()) == sum(counter.forwards)
    assert int(result.cost.backwards.sum()) == sum(counter.backwards)
    assert result.cost.forwards.shape == result.cost.backwards.shape == (60,)


@pytest.mark.parametrize("name", ["pgd", "apgd", "rfgsm", "noise"])
def test_costs_of_a_randomised_model(noisy, counting, name):
    model, x, y = noisy
    counter = counting(model)  # hides cheap_draws: every draw is a pass of its own
    result = sw.attack(name, eot=3)(counter, x, y, within=sw.Linf(0.05))
    assert int(result.cost.forwards.sum()) == sum(counter.forwards)
    assert int(result.cost.backwards.sum()) == sum(counter.backwards)


def test_a_transfer_counts_the_passes_through_its_source_too(digits, counting):
    model, x, y = digits
    source, target = counting(model), counting(model)
    result = sw.attack("transfer", source=source, options={"steps": 4})(target, x, y, within=sw.Linf(0.05))
    assert int(result.cost.backwards.sum()) == sum(source.backwards)
    assert int(result.cost.forwards.sum()) == sum(source.forwards) + sum(target.forwards)
    assert target.backwards == []


@pytest.mark.parametrize("name", ["pgd", "noise", "transfer"])
def test_a_seed_fixes_the_result(digits, noisy, name):
    for model, x, y in (digits, noisy):
        attack = sw.attack(name, **({"options": {"steps": 3}} if name == "transfer" else {}))
        run = [attack(model, x, y, within=sw.Linf(0.02), seed=seed) for seed in (0, 0, 1)]
        assert torch.equal(run[0].x_adv, run[1].x_adv)
        assert torch.equal(run[0].margin, run[1].margin)
        assert torch.equal(run[0].cost.forwards, run[1].cost.forwards)
        assert not torch.equal(run[0].x_adv, run[2].x_adv)


def test_chunks_start_from_different_points(digits):
    model, x, y = digits
    twice = torch.cat([x[:5], x[:5]])
    result = sw.attack("noise")(model, twice, torch.cat([y[:5], y[:5]]), within=sw.Linf(0.1), batch_size=5)
    assert not torch.equal(result.x_adv[:5], result.x_adv[5:])


def test_a_deterministic_start_does_not_depend_on_the_batch_size(digits):
    model, x, y = digits
    within = sw.Linf(torch.linspace(0, 0.2, 60))
    runs = [sw.attack("bim", steps=5)(model, x, y, within=within, batch_size=size) for size in (1, 7, 60)]
    for run in runs[1:]:
        assert torch.allclose(run.x_adv, runs[0].x_adv, atol=1e-6)
        assert torch.equal(run.success, runs[0].success)


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_more_restarts_are_never_worse(digits, loss):
    model, x, y = digits
    within = sw.Linf(0.06)
    one, five = (
        sw.attack("pgd", steps=2, step=0.03, loss=loss, restarts=r)(model, x, y, within=within) for r in (1, 5)
    )
    assert not (one.success & ~five.success).any()
    held = ~five.success
    assert held.any()
    assert (five.margin[held] <= one.margin[held] + 1e-6).all()
    assert (five.margin[held] < one.margin[held] - 1e-6).any()


def test_random_noise_is_weaker_than_pgd(digits, noisy):
    for model, x, y in (digits, noisy):
        within = sw.Linf(0.08)
        noise, pgd = (
            sw.attack(name, **options)(model, x, y, within=within)
            for name, options in (("noise", {"trials": 10}), ("pgd", {"eot": 10}))
        )
        assert pgd.margin.mean() < noise.margin.mean()
        assert pgd.success.sum() >= noise.success.sum()


def test_more_trials_of_noise_and_a_larger_radius_do_not_hurt(digits):
    model, x, y = digits
    one, many = (sw.attack("noise", trials=t)(model, x, y, within=sw.Linf(0.2)) for t in (1, 20))
    assert (many.margin <= one.margin + 1e-6).all()
    assert (many.margin < one.margin - 1e-6).any()
    rates = [sw.attack("bim")(model, x, y, within=sw.Linf(eps)).success.sum() for eps in (0.0, 0.03, 0.1, 0.3)]
    assert rates == sorted(rates)
    assert rates[-1] > rates[0]


def test_sign_noise_sits_in_corners_and_uniform_noise_does_not(digits):
    model, x, y = digits
    x = x.clamp(0.2, 0.8)
    corner = sw.attack("noise", kind="sign")(model, x, y, within=sw.Linf(0.1)).x_adv - x
    assert torch.allclose(corner.abs(), torch.full_like(x, 0.1), atol=1e-6)
    inside = sw.attack("noise", kind="uniform")(model, x, y, within=sw.Linf(0.1)).x_adv - x
    assert inside.abs().mean() == pytest.approx(0.05, abs=0.005)


def test_one_step_of_fgsm_goes_the_whole_way(digits):
    model, x, y = digits
    x = x.clamp(0.2, 0.8)
    result = sw.attack("fgsm")(model, x, y, within=sw.Linf(0.05))
    moved = (result.x_adv - x).abs().flatten(1).amax(1)
    clean_right = model(x).argmax(1) == y
    assert torch.allclose(moved[clean_right], torch.tensor(0.05), atol=1e-6)
    assert (moved[~clean_right] == 0).all()


def test_a_small_step_does_not_bind_l0_attacks_to_their_random_start(digits):
    model, x, y = digits
    within = sw.L0(2)
    random = sw.attack("pgd", steps=20)(model, x, y, within=within, seed=0).success.float().mean()
    one_step = sw.attack("fgsm")(model, x, y, within=within, seed=0).success.float().mean()
    assert random >= one_step - 0.05
