"""Promises that every threat model keeps."""

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator, shard
from stalwart.core.registry import build
from stalwart.sets import L0, L1, L2, SETS, Box, Linf

# Rasters of events are whole numbers: test_event_flips.py.
KINDS = [kind for kind in SETS if kind != "events"]
SHAPES = [(5,), (1, 4, 3), (3, 4, 4)]
settings = hypothesis.settings(max_examples=40, deadline=None)


def make(kind, size, low, high, per_sample, x):
    if kind == "l0":
        size = round(size * 3)
    radius = [size * (i % 3) for i in range(len(x))] if per_sample else size
    if kind != "box":
        return {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}[kind](radius, low=low, high=high)
    reach = torch.as_tensor(radius, dtype=torch.float64).reshape(-1, *[1] * (x.dim() - 1))
    below, above = torch.rand(2, *x.shape, generator=generator(len(x)), dtype=torch.float64)
    return Box(x.detach() - reach * below, x.detach() + reach * above, low=low, high=high)


@st.composite
def cases(draw):
    low, high = draw(st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-3.0, 0.5)]))
    shape, batch = draw(st.sampled_from(SHAPES)), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    size = draw(st.sampled_from([0.0, 1e-4, 8 / 255, 0.3, 2.0])) * (high - low)
    kind, per_sample = draw(st.sampled_from(KINDS)), draw(st.booleans())
    source = generator(draw(st.integers(0, 10**6)))
    x = low + (high - low) * torch.rand(batch, *shape, generator=source, dtype=dtype)
    # A share of coordinates sits exactly on the border of the box.
    edge = torch.rand(x.shape, generator=source)
    x = torch.where(edge < 0.2, low, torch.where(edge > 0.8, high, x)).to(dtype)
    within = make(kind, size, low, high, per_sample, x)
    reach = draw(st.sampled_from([1e-3, 1.0, 1e6, 1e30])) * (high - low)
    z = x + reach * torch.randn(x.shape, generator=source, dtype=dtype)
    return within, x, z, source


@settings
@hypothesis.given(cases())
def test_projections_and_samples_are_contained(case):
    within, x, z, source = case
    for point in (x, within.project(x, z), within.sample(x, source)):
        assert point.dtype == x.dtype
        assert point.shape == x.shape
        assert within.contains(x, point).all()
        lower, upper = within.bounds(x)
        slack = 1e-6 * max(1, abs(within.low), abs(within.high))
        assert (point >= lower - slack).all()
        assert (point <= upper + slack).all()
        assert (point >= within.low).all()
        assert (point <= within.high).all()


@settings
@hypothesis.given(cases())
def test_points_inside_are_left_alone(case):
    within, x, z, _ = case
    inside = within.project(x, z)
    assert torch.allclose(within.project(x, inside), inside, rtol=0, atol=1e-6 * max(1, within.high))
    assert torch.equal(within.project(x, x), x)


@settings
@hypothesis.given(cases())
def test_support_bounds_every_point_and_is_attained(case):
    within, x, z, source = case
    c = torch.randn(x.shape, generator=source, dtype=x.dtype)
    best = within.support(x, c)
    assert best.dtype == x.dtype
    # A far step along the steepest direction: the maximiser itself in the l-infinity ball and in a box.
    far = within.project(x, x + 1e3 * (within.high - within.low) * within.steepest(c))
    for point in (within.project(x, z), within.sample(x, source), far):
        value = (c.double() * point.double()).flatten(1).sum(1)
        size = (c.double().abs() * max(1, abs(within.low), abs(within.high))).flatten(1).sum(1)
        assert (value <= best + 1e-6 * size).all()
    if within.name in {"linf", "box"}:
        assert torch.allclose(value, best.double(), rtol=1e-5, atol=1e-5 * float(size.max()))


@settings
@hypothesis.given(cases())
def test_steepest_has_unit_size(case):
    within, x, z, _ = case
    gradient = (z - x) * 1e-30
    unit = within.steepest(gradient)
    if within.name == "box":
        # A step of the scale moves every element that has a gradient by its own half-width.
        moved = unit.double().abs() * within.scale.reshape(-1, *[1] * (x.dim() - 1))
        torch.testing.assert_close(
            moved, torch.where(gradient != 0, (within.upper - within.lower) / 2, 0.0), rtol=1e-6, atol=1e-12
        )
        assert (unit * gradient >= 0).all()
        return
    norm = {"linf": math.inf, "l2": 2, "l1": 1, "l0": math.inf}[within.name]
    size = torch.linalg.vector_norm(unit.flatten(1).double(), norm, dim=1)
    assert torch.allclose(size, (gradient.flatten(1) != 0).any(1).double(), atol=1e-4)
    assert torch.equal(within.steepest(torch.zeros_like(x)), torch.zeros_like(x))


@pytest.mark.parametrize("kind", KINDS)
def test_radius_zero_returns_the_clean_input_bit_for_bit(kind):
    x = torch.rand(4, 3, 5, 5, generator=generator(0))
    x[0, 0], x[1, 0] = 0.0, 1.0
    within = make(kind, 0.0, 0.0, 1.0, False, x)
    z = torch.rand(4, 3, 5, 5, generator=generator(1)) * 1e20
    assert torch.equal(within.project(x, z), x)
    assert torch.equal(within.sample(x, generator(2)), x)
    assert within.contains(x, x).all()
    assert not within.contains(x, x + 1e-3).any()
    lower, upper = within.bounds(x)
    assert torch.equal(lower, x)
    assert torch.equal(upper, x)
    c = torch.randn(x.shape, generator=generator(3))
    torch.testing.assert_close(within.support(x, c), (c * x).flatten(1).sum(1))


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_never_contained_and_infinity_is_projected(kind):
    x = torch.full((2, 3, 4, 4), 0.5)
    within = make(kind, 0.4, 0.0, 1.0, False, x)
    z = x.clone()
    z[0, 0, 0, 0] = math.nan
    assert within.contains(x, z).tolist() == [False, True]
    z[0, 0, 0, 0], z[1] = math.inf, -math.inf
    assert not within.contains(x, z).any()
    assert within.contains(x, within.project(x, z)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_radius_a_sample_acts_like_each_sample_alone(kind):
    x = torch.rand(3, 2, 4, 4, generator=generator(0))
    z = x + torch.randn(x.shape, generator=generator(1))
    c = torch.randn(x.shape, generator=generator(2))
    many = make(kind, 0.35, 0.0, 1.0, True, x)
    for i in range(3):
        # A box has no radius to give it; its ends are taken one by one in a test of its own.
        one = many.select(slice(i, i + 1)) if kind == "box" else many.with_eps(float(many.radius[i]))
        for part in (many.select(slice(i, i + 1)), many.select(torch.tensor([i])), many.select(torch.arange(3) == i)):
            assert part.radius.tolist() == [float(one.radius)]
        rows = slice(i, i + 1)
        assert torch.equal(many.project(x, z)[rows], one.project(x[rows], z[rows]))
        assert torch.equal(many.support(x, c)[rows], one.support(x[rows], c[rows]))
        assert torch.equal(many.bounds(x)[0][rows], one.bounds(x[rows])[0])
        assert torch.equal(many.contains(x, z)[rows], one.contains(x[rows], z[rows]))
    assert many.size == many.radius.max()
    message = r"have shape \[3, 2, 4, 4\] but the inputs \[2" if kind == "box" else "3 radii but there are 2 inputs"
    for method in (many.project, many.contains, many.support):
        with pytest.raises(InputError, match=message):
            method(x[:2], z[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_two_shards_sample_what_one_process_samples(kind):
    x = torch.rand(4, 1, 3, 3, generator=generator(0))
    within = make(kind, 0.35, 0.0, 1.0, False, x)
    whole = within.sample(x, generator(5))
    parts = []
    for rank in range(2):
        with shard(rank, 2):
            rows = slice(2 * rank, 2 * rank + 2)
            parts.append(within.select(rows).sample(x[rows], generator(5)))
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_slightly_outside_the_box_and_empty_batches(kind):
    x = torch.tensor([[1 + 5e-6, -5e-6, 0.5]])
    within = make(kind, 0.0, 0.0, 1.0, False, x)
    assert within.contains(x, within.project(x, x)).all()
    none = within.select(slice(0, 0))
    assert none.contains(x[:0], none.project(x[:0], x[:0])).shape == (0,)
    assert none.support(x[:0], x[:0]).shape == (0,)
    with pytest.raises(InputError, match=r"x\.float"):
        within.project(x.half(), x.half())


@pytest.mark.parametrize("kind", KINDS)
def test_the_support_function_has_the_maximiser_as_gradient(kind):
    x = torch.rand(2, 2, 3, 3, generator=generator(0), dtype=torch.float64, requires_grad=True)
    within = make(kind, 0.35, 0.0, 1.0, False, x)
    c = torch.randn(x.shape, generator=generator(1), dtype=torch.float64, requires_grad=True)
    value = within.support(x, c)
    (best,) = torch.autograd.grad(value.sum(), c, retain_graph=True)
    assert within.contains(x.detach(), best).all()
    torch.testing.assert_close((best * c).flatten(1).sum(1), value)
    assert torch.autograd.gradcheck(within.support, (x, c), eps=1e-7, atol=1e-5)


def test_radii_as_people_write_them():
    assert Linf("8/255").eps == 8 / 255
    assert Linf("8/255") == Linf(8 / 255)
    assert len({Linf([0.1, 0.2]), Linf([0.1, 0.2]), Linf(torch.tensor([0.1, 0.3])), L2([0.1, 0.2])}) == 3
    assert Linf(["1/4", 1]).eps.dtype == torch.float64
    assert L0(torch.tensor([1, 2])).pixels.tolist() == [1, 2]
    assert build("threat", SETS, "linf", {"eps": "8/255"}) == Linf("8/255")
    assert build("threat", SETS, "l2", {"eps": [0.5, "1/2"], "high": "1/2"}) == L2([0.5, 0.5], high=0.5)
    assert build("threat", SETS, "l0", {"pixels": "3"}) == L0(3)
    assert build("threat", SETS, "l1", {"eps": "12"}) == L1(12) != L1(12, high=2.0)
    assert build("threat", SETS, "box", {"lower": [[0]], "upper": [[0.5]]}) == Box(torch.zeros(1, 1), [[0.5]])
    assert len({Box([[0.0]], [[1.0]]), Box([[-9.0]], [[9.0]]), Box([[0.0]], [[0.5]]), Box([[[0.0]]], [[[1.0]]])}) == 3
    assert Linf(0.1) != 0.1


def test_a_record_does_not_change_with_the_tensor_it_was_made_from():
    eps = torch.tensor([0.1, 0.2], dtype=torch.float64)
    within = Linf(eps)
    eps[0] = 9.0
    assert within.size == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("within", "line"),
    [
        (Linf("8/255"), "Linf eps=0.03137 (8/255)"),
        (Linf(0.2, low=-1.0), "Linf eps=0.2 in [-1, 1]"),
        (L2(0.123456), "L2 eps=0.1235"),
        (L1(12), "L1 eps=12"),
        (Box([[0.2, 0.5], [0.1, 0.1]], [[0.3, 0.9], [0.1, 9]]), "Box half-width=0.2..0.45 (one each for 2 samples)"),
        (L2([0.1, 0.3]), "L2 eps=0.1..0.3 (one each for 2 samples)"),
        (L0(5), "L0 pixels=5"),
        (Linf([]), "Linf eps=none (0 samples)"),
    ],
)
def test_descriptions(within, line):
    assert within.describe() == line


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Linf(-0.1),
        lambda: L2(math.nan),
        lambda: Linf("eight"),
        lambda: Linf([0.1, -0.2]),
        lambda: Linf(torch.tensor([0.1, math.nan])),
        lambda: Linf([[0.1]]),
        lambda: L2(0.1, low=1.0, high=1.0),
        lambda: L1(-1),
        lambda: L1([1.0, math.inf]),
        lambda: L1(1, low=1.0, high=1.0),
        lambda: L0(1.5),
        lambda: L0([1.0, 2.5]),
        lambda: L0(-1),
        lambda: build("threat", SETS, "linf", {"eps": -1}),
        lambda: build("threat", SETS, "linf", {"eps": 0.1, "low": 2.0}),
        lambda: build("threat", SETS, "l0", {"eps": 1}),
        lambda: build("threat", SETS, "l1", {"eps": "x"}),
        lambda: build("threat", SETS, "box", {"lower": [[0.5]], "upper": [[0.4]]}),
    ],
)
def test_impossible_sets_are_refused(wrong):
    with pytest.raises(UsageError):
        wrong()
