"""Mismatch: its levels are the standard deviations they say they are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stalwart.core.errors import UsageError
from stalwart.core.random import generator
from stalwart.hardware import Mismatch


def weights(count=100_000):
    return {"fc.weight": torch.randn(count // 100, 100, generator=generator(1), dtype=torch.float64)}


@given(level=st.floats(0.01, 1.0), seed=st.integers(0, 10**6))
def test_gaussian_std_is_the_level_of_each_weight(level, seed):
    params = weights()
    moved = Mismatch(level).apply(params, generator(seed))["fc.weight"] - params["fc.weight"]
    relative = moved / params["fc.weight"].abs()
    assert abs(float(relative.std()) / level - 1) < 0.02
    assert abs(float(relative.mean())) < 5 * level / 100_000**0.5


def test_range_std_is_the_level_of_the_largest_weight_whatever_the_weight():
    params = weights()
    moved = Mismatch(0.1, "range").apply(params, generator(0))["fc.weight"] - params["fc.weight"]
    scale = 0.1 * float(params["fc.weight"].abs().max())
    small = params["fc.weight"].abs() < 0.5
    assert abs(float(moved[small].std()) / scale - 1) < 0.02
    assert abs(float(moved[~small].std()) / scale - 1) < 0.02


def test_log_normal_keeps_signs_and_medians():
    params = weights()
    ratio = Mismatch(0.5, "log-normal").apply(params, generator(0))["fc.weight"] / params["fc.weight"]
    assert bool((ratio > 0).all())
    assert abs(float(ratio.log().std()) / 0.5 - 1) < 0.02
    assert abs(float(ratio.median()) - 1) < 0.01


def test_gaussian_leaves_the_box_of_its_level_for_a_third_of_the_weights():
    params = weights()
    moved = Mismatch(0.1).apply(params, generator(0))["fc.weight"] - params["fc.weight"]
    outside = (moved.abs() > 0.1 * params["fc.weight"].abs()).double().mean()
    assert abs(float(outside) - 0.3173) < 0.01


@pytest.mark.parametrize("mode", ["gaussian", "log-normal"])
def test_zeros_stay_zero_under_relative_noise(mode):
    params = {"fc.weight": torch.tensor([[0.0, 1.0, 0.0, -2.0]])}
    moved = Mismatch(0.7, mode).apply(params, generator(0))["fc.weight"]
    assert moved[0, [0, 2]].tolist() == [0.0, 0.0]
    assert not torch.equal(moved, params["fc.weight"])
    assert bool((Mismatch(0.7, "range").apply(params, generator(0))["fc.weight"][0, [0, 2]] != 0).all())


def test_level_zero_changes_nothing():
    params = weights(1000)
    for mode in ("gaussian", "range", "log-normal"):
        assert torch.equal(Mismatch(0.0, mode).apply(params, generator(0))["fc.weight"], params["fc.weight"])


@pytest.mark.parametrize(("level", "says"), [(5.0, "write 0.05"), (-0.1, "share in"), (float("nan"), "share in")])
def test_levels_in_percent_are_refused(level, says):
    with pytest.raises(UsageError, match=says):
        Mismatch(level)


def test_description_has_the_unit_and_the_kind():
    assert Mismatch(0.1).describe() == (
        "mismatch of standard deviation 10 % of |θ| (gaussian), on weight matrices and their biases"
    )
    assert "max|θ|" in Mismatch(0.1, "range").describe()
    text = Mismatch(0.1, "log-normal", fresh=True, only="*threshold").describe()
    assert text == "mismatch of standard deviation 0.1 in ln θ (log-normal), on *threshold, drawn at each forward pass"
