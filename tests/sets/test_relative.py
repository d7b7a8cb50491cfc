"""Boxes around weights: which weights, how far they go, and bounds over them."""

import doctest
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import stalwart as sw
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.sets import RelativeBox, relative


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)
    )


def test_by_hand():
    box, params = RelativeBox("1/4"), {"w": torch.tensor([2.0, -4.0, 0.0])}
    moved = {"w": torch.tensor([9.0, -4.5, 1.0])}
    assert [end.tolist() for end in box.bounds(params)["w"]] == [[1.5, -5.0, 0.0], [2.5, -3.0, 0.0]]
    assert box.project(params, moved)["w"].tolist() == [2.5, -4.5, 0.0]
    assert box.contains(params, {"w": torch.tensor([2.5, -3.0, 0.0])})
    for wrong in ([2.51, -4.0, 0.0], [2.0, -2.99, 0.0], [2.0, -4.0, 1e-30], [2.0, torch.nan, 0.0]):
        assert not box.contains(params, {"w": torch.tensor(wrong)})
    assert params["w"].tolist() == [2.0, -4.0, 0.0]
    assert box.describe() == "RelativeBox fraction=0.25 of '*weight'"
    assert RelativeBox(0.1, ("a*", "b")).describe() == "RelativeBox fraction=0.1 of 'a*' or 'b'"


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("*weight", ["0.weight", "4.weight", "6.weight"]),
        ("*", ["0.weight", "0.bias", "4.weight", "4.bias", "6.weight", "6.bias"]),
        ("6.*", ["6.weight", "6.bias"]),
        (("6.bias", "0.w*"), ["0.weight", "6.bias"]),
        ("1.weight", ["1.weight"]),
        ("1.*", ["1.weight", "1.bias"]),
        (("*weight", "1.bias"), ["0.weight", "1.bias", "4.weight", "6.weight"]),
    ],
)
def test_patterns_choose_parameters_and_batch_norm_only_when_spelled_out(only, names):
    model = net()
    found = RelativeBox(0.1, only).select(model)
    assert list(found) == names
    assert all(found[name] is model.get_parameter(name) for name in names)


def test_a_shared_parameter_is_chosen_once_by_any_of_its_names():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

    for only in ("a.weight", "b.weight", "*"):
        assert list(RelativeBox(0.1, only).select(Tied())) == ["a.weight"]


@given(
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float64]),
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=8),
    st.integers(0, 999),
)
def test_whatever_it_returns_is_inside(fraction, dtype, values, seed):
    box, source = RelativeBox(fraction), generator(seed)
    params = {"a": torch.tensor(values, dtype=dtype), "b": torch.tensor([values], dtype=dtype)}
    far = {name: p + 3 * p.abs().clamp_min(1) * torch.randn(p.shape, generator=source) for name, p in params.items()}
    for found in (box.project(params, far), box.sample(params, source), box.corner(params, source)):
        assert box.contains(params, found)
        for name, p in params.items():
            reach = (fraction + 1e-6) * p.double().abs()
            assert ((found[name].double() - p.double()).abs() <= reach + torch.finfo(dtype).tiny).all()
            assert (found[name][p == 0] == 0).all()
            assert found[name].dtype == dtype
    inside = box.sample(params, source)
    assert all(torch.equal(inside[name], again) for name, again in box.project(params, inside).items())


def test_samples_are_uniform_and_corners_fair():
    params = {"w": torch.tensor([2.0, -1.0]).repeat(4000, 1)}
    box = RelativeBox(0.3)
    share = (box.sample(params, generator(0))["w"] / params["w"] - 1) / 0.3
    for part in (-0.5, 0.0, 0.5):
        assert ((share < part).float().mean(0) - (part + 1) / 2).abs().max() < 0.03
    ends = (box.corner(params, generator(1))["w"] / params["w"] - 1) / 0.3
    torch.testing.assert_close(ends.abs(), torch.ones_like(ends))
    assert (ends > 0).float().mean(0).sub(0.5).abs().max() < 0.03
    assert torch.equal(box.corner(params, generator(1))["w"], box.corner(params, generator(1))["w"])


@pytest.mark.parametrize("within", [None, sw.Linf(0.05)])
@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_bounds_hold_sampled_boxes(method, within):
    model = net().eval()
    x, box, source = (
        torch.rand(3, 1, 4, 4, generator=generator(3)),
        sw.RelativeBox(0.05, ("*weight", "*bias")),
        generator(4),
    )
    params = {name: p.detach() for name, p in box.select(model).items()}
    y = torch.tensor([0, 1, 2])
    with torch.no_grad():
        found = sw.bound(model, x, within, method, weights=box)
        margins = sw.margin_bound(model, x, y, within, method, weights=box)
        for number in range(250):
            moved = (box.corner if number % 2 else box.sample)(params, source)
            z = x if within is None else within.sample(x, source)
            out = torch.func.functional_call(model, moved, (z,))
            assert (out >= found.lower - 1e-5).all()
            assert (out <= found.upper + 1e-5).all()
            others = out.scatter(1, y[:, None], -torch.inf).amax(1)
            assert (out.gather(1, y[:, None])[:, 0] - others >= margins - 1e-5).all()


def test_the_bound_of_one_linear_layer_is_exact():
    model = nn.Linear(4, 2).double()
    x = torch.rand(3, 4, generator=generator(0), dtype=torch.float64)
    found = sw.bound(model, x, weights=sw.RelativeBox(0.2), method="ibp")
    reach = 0.2 * x.abs() @ model.weight.abs().t()
    torch.testing.assert_close(found.upper, model(x) + reach)
    torch.testing.assert_close(found.lower, model(x) - reach)


def test_bounds_refuse_a_set_of_weights_for_the_inputs():
    x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    for call in (lambda box: sw.bound(net().eval(), x, box), lambda box: sw.margin_bound(net().eval(), x, y, box)):
        with pytest.raises(UsageError, match="RelativeBox fraction=0.1 .* is a set of weights; give it as weights="):
            call(sw.RelativeBox(0.1))


@pytest.mark.parametrize("fraction", [5, "5", -0.1, 1.01])
def test_a_fraction_outside_its_range(fraction):
    with pytest.raises(UsageError, match=r"must lie in \[0, 1\].*5 % as 0.05"):
        RelativeBox(fraction)


@pytest.mark.parametrize("fraction", ["5 %", float("nan"), None, True])
def test_a_fraction_that_is_no_number(fraction):
    with pytest.raises(UsageError, match="number"):
        RelativeBox(fraction)


def test_selections_that_cannot_be():
    model = net()
    with pytest.raises(UsageError, match=r"no parameter of Sequential matches '\*wieght'.*It has: 0.weight, 0.bias"):
        RelativeBox(0.1, "*wieght").select(model)
    with pytest.raises(UsageError, match="Did you mean '4.weight'"):
        RelativeBox(0.1, "4.wieght").select(model)
    with pytest.raises(UsageError, match="an empty list of patterns"):
        RelativeBox(0.1, ()).select(model)
    with pytest.raises(UsageError, match="batch normalisation, which must be spelled out"):
        RelativeBox(0.1, "1*").select(model)
    with pytest.raises(UsageError, match="It has: none"):
        RelativeBox(0.1).select(nn.ReLU())
    model.codes = nn.Parameter(torch.arange(3), requires_grad=False)
    with pytest.raises(UsageError, match=r"'codes' holds torch.int64.*not '\*'"):
        RelativeBox(0.1, "*").select(model)
    assert "codes" not in RelativeBox(0.1).select(model)


def test_points_that_do_not_belong_to_the_centre():
    box, w = RelativeBox(0.1), torch.ones(2)
    for call in (box.project, box.contains):
        with pytest.raises(InputError, match="differ: v, w"):
            call({"w": w}, {"v": w})
        with pytest.raises(InputError, match=r"'w' has shape \[2\].*\[3\]"):
            call({"w": w}, {"w": torch.ones(3)})


def test_bounds_and_gradients_reach_the_weights():
    w = torch.tensor([2.0, -3.0], requires_grad=True)
    for sign, end in zip((-1, 1), RelativeBox(0.5).bounds({"w": w})["w"], strict=True):
        (slope,) = torch.autograd.grad(end.sum(), w, retain_graph=True)
        assert slope.tolist() == [1 + sign * 0.5, 1 - sign * 0.5]


def test_equal_sets_are_equal():
    assert RelativeBox("1/10") == RelativeBox(0.1) == sw.RelativeBox(0.1, "*weight")
    different = [RelativeBox(0.1), RelativeBox(0.2), RelativeBox(0.1, "*bias")]
    assert all(a != b for a, b in itertools.combinations(different, 2))
    assert len(set(different)) == 3


def test_the_example_in_the_docstring_runs():
    outcome = doctest.testmod(relative)
    assert outcome.attempted >= 2
    assert outcome.failed == 0
