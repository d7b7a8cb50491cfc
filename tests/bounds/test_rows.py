"""Lines with slopes for each row: compiled loops against plain operators and autograd, windows against dense coefficients."""

import copy

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.bounds import bound, margin_bounds
from stalwart.bounds.alpha import Ascent, Rows, free_nodes, optimise, refine
from stalwart.bounds.backward import BackwardWalk, at_entries, lower_bound
from stalwart.bounds.interval import Interval
from stalwart.bounds.lines import Lines
from stalwart.bounds.methods import margin_rows, prepare, propagate
from stalwart.bounds.patches import Patches
from stalwart.bounds.propagation import Propagation
from stalwart.bounds.region import Region
from stalwart.bounds.rows import RowBox, RowLines, box_minimum, climb
from stalwart.bounds.rules.base import dot
from stalwart.core import jit
from stalwart.core.random import generator

TYPES = [torch.float32, torch.float64]
SIZES = [37, 2100]
"""One run of sums, and several."""
needs_numba = pytest.mark.skipif(not jit.available(), reason="numba is not installed")


def close(one, other):
    room = 1e-4 if one.dtype == torch.float32 else 1e-11
    return torch.allclose(one, other, atol=room, rtol=room)


def random(*shape, dtype, seed):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


@needs_numba
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("at", [0.0, 0.5])
@pytest.mark.parametrize("size", SIZES)
def test_lines_and_their_gradients_equal_autograd(dtype, at, size, monkeypatch):
    parts = [random(3, size, dtype=dtype, seed=seed) for seed in range(4)]
    free = random(3, size, dtype=dtype, seed=4) > 0

    def run():
        a = random(3, 5, size, dtype=dtype, seed=5).requires_grad_()
        slopes = random(3, 5, size, dtype=dtype, seed=6).requires_grad_()
        out, added = RowLines(Lines(*parts), free, slopes, at, 0.3).passed(a)
        weights = random(3, 5, size, dtype=dtype, seed=7)
        total = (out * weights).sum() + (added * weights[..., 0]).sum()
        return out, added, *torch.autograd.grad(total, [a, slopes])

    fast = run()
    monkeypatch.setattr(jit, "available", lambda: False)
    for one, other in zip(fast, run(), strict=True):
        assert close(one, other)


@needs_numba
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", SIZES)
def test_the_minimum_over_a_box_equals_autograd(dtype, size, monkeypatch):
    centre, reach = random(3, size, dtype=dtype, seed=0), random(3, size, dtype=dtype, seed=1).abs()

    def run():
        a = random(3, 5, size, dtype=dtype, seed=2)
        a[0, 0, 0] = 0
        a.requires_grad_()
        found = box_minimum(a, centre, reach)
        return found, *torch.autograd.grad((found * random(3, 5, dtype=dtype, seed=3)).sum(), a)

    fast = run()
    monkeypatch.setattr(jit, "available", lambda: False)
    for one, other in zip(fast, run(), strict=True):
        assert close(one, other)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", SIZES)
def test_one_vector_for_all_rows_equals_plain_operators_and_keeps_gradients(dtype, size):
    a, vector = random(3, 5, size, dtype=dtype, seed=0), random(1, size, dtype=dtype, seed=1)
    expected = (a * vector).sum(2)
    assert close(dot(a, vector), expected)
    # Every other entry of a row, which is no row of memory.
    assert close(dot(a[..., ::2], vector[:, ::2]), (a * vector)[..., ::2].sum(2))
    (gradient,) = torch.autograd.grad(dot(a.requires_grad_(), vector).sum(), a)
    assert torch.equal(gradient, vector.expand(3, 5, size))


@needs_numba
@pytest.mark.parametrize("dtype", TYPES)
def test_steps_equal_plain_operators_and_stay_between_the_ends(dtype, monkeypatch):
    def run():
        value, mean, square = random(41, dtype=dtype, seed=0).clamp(0, 1), *torch.zeros(2, 41, dtype=dtype)
        for step in range(1, 6):
            climb(value, random(41, dtype=dtype, seed=step), mean, square, 0.3, step, (0.0, 1.0))
        return value, mean, square

    fast = run()
    assert fast[0].min() >= 0
    assert fast[0].max() <= 1
    monkeypatch.setattr(jit, "available", lambda: False)
    for one, other in zip(fast, run(), strict=True):
        assert close(one, other)


def test_a_step_goes_up():
    value = torch.full((2,), 0.5)
    climb(value, torch.tensor([1.0, -1.0]), torch.zeros(2), torch.zeros(2), 0.1, 1, (0.0, 1.0))
    assert torch.allclose(value, torch.tensor([0.6, 0.4]))


def test_windows_over_the_border_see_zeros():
    image = torch.arange(1.0, 13.0).reshape(1, 3, 4, 1)
    windows = Patches(torch.zeros(1, 2, 2, 2, 1), torch.tensor([[[-1, -1], [2, 2]]]), (1, 3, 4))
    assert windows.seen(image).flatten(2).tolist() == [[[0, 0, 0, 1], [11, 12, 0, 0]]]
    box = RowBox.over(windows, Interval(image.movedim(-1, 1) - 1, image.movedim(-1, 1) + 1))
    assert box.reach.flatten(1).tolist() == [[0, 0, 0, 1], [1, 1, 0, 0]]


def convolutional(activation=nn.ReLU):
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), activation(), nn.Conv2d(3, 4, 3, padding=1)]
    more = [nn.Conv2d(4, 4, 2, dilation=2), activation(), nn.Flatten()]
    return nn.Sequential(*body, *more, nn.Linear(4 * 6 * 6, 3)).double().eval()


@needs_numba
@pytest.mark.parametrize("leaky", [False, True])
def test_windows_and_dense_rows_have_the_same_bounds_and_gradients(leaky, monkeypatch):
    model = convolutional((lambda: nn.LeakyReLU(0.1)) if leaky else nn.ReLU)
    x = torch.rand(2, 1, 16, 16, generator=generator(1), dtype=torch.float64)
    known = propagate(model, x, sw.Linf(0.2), "crown")
    node = next(node for node in reversed(known.graph.nodes) if node in known.relaxed).parents[0]
    rows = torch.arange(40).expand(2, -1)

    def run():
        view = Rows(known, free_nodes(known, node))
        found = lower_bound(known, at_entries(known, node, rows), walk=BackwardWalk(view))
        (slopes,) = (one.slopes for one in view.own.values())
        return found, slopes, torch.autograd.grad(found, slopes, torch.ones_like(found))[0]

    fast = run()
    assert fast[1].shape[:2] == (2 * 80, 1)
    monkeypatch.setattr(jit, "available", lambda: False)
    slow = run()
    assert slow[1].shape[:2] == (2, 80)
    assert close(fast[0], slow[0])
    assert close(fast[2].flatten(1).sum(1), slow[2].flatten(0, 1).flatten(1).sum(1))


@pytest.mark.parametrize("norm", [sw.Linf(0.1), sw.L2(0.5)])
@pytest.mark.parametrize("dtype", TYPES)
def test_optimised_bounds_contain_samples_and_are_never_looser_than_crown(norm, dtype):
    model = copy.deepcopy(convolutional()).to(dtype)
    x = torch.rand(3, 1, 16, 16, generator=generator(2), dtype=torch.float64).to(dtype)
    found, crown = (bound(model, x, norm, method) for method in ("alpha-crown", "crown"))
    room = 1e-4 if dtype == torch.float32 else 1e-9
    assert (found.lower >= crown.lower - room).all()
    assert (found.upper <= crown.upper + room).all()
    assert (found.lower > crown.lower + 1e-3).any()
    assert not found.lower.requires_grad
    with torch.no_grad():
        for seed in range(30):
            y = model(norm.sample(x, generator(seed)))
            assert (y >= found.lower - room).all()
            assert (y <= found.upper + room).all()


def test_rows_that_are_optimised_together_do_not_touch_each_other():
    model = convolutional()
    x = torch.rand(3, 1, 16, 16, generator=generator(3), dtype=torch.float64)
    y = torch.tensor([0, 1, 2])
    all_ = margin_bounds(model, x, y, sw.Linf(0.1), "alpha-crown")
    alone = torch.cat([margin_bounds(model, x[i : i + 1], y[i : i + 1], sw.Linf(0.1), "alpha-crown") for i in range(3)])
    assert torch.allclose(all_, alone, atol=1e-6)


def test_adaptive_lines_follow_the_interval_of_the_walk():
    """The walk finds [-3.2, 1.8], intervals [-1.2, 2.8]: the midpoint of the intersection alone lies above 0."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        model[2].weight.fill_(1)
        model[2].bias.fill_(-1.2)
    known = propagate(model, torch.zeros(1, 2, dtype=torch.float64), sw.Linf(1.0, low=-1.0), "crown")
    node = [node for node in known.graph.nodes if node in known.relaxed][-1]
    held, lines = known.interval(node.parents[0]), known.lines(node)
    assert held.lower.item() == pytest.approx(-1.2)
    assert held.upper.item() == pytest.approx(1.8)
    assert lines.lower_slope.item() == 0
    assert lines.upper_slope.item() == pytest.approx(0.6)


def test_intermediate_intervals_of_alpha_crown_are_those_of_crown_or_better():
    model = convolutional()
    x = torch.rand(2, 1, 16, 16, generator=generator(6), dtype=torch.float64)
    graph = prepare(model, x)
    rows = margin_rows(torch.tensor([0, 1]), 3).double()

    def known(iterations):
        with torch.no_grad():
            box = Region.around(x, sw.Linf(0.1))
            return Propagation(graph, graph.fixed(model), box, "adaptive", refine(Ascent(iterations, 0.7)))

    plain, better = known(1), known(8)
    for (_, one), (_, other) in zip(plain.activations, better.activations, strict=True):
        assert (other.lower >= one.lower - 1e-9).all()
        assert (other.upper <= one.upper + 1e-9).all()
    assert (optimise(better, rows, Ascent(20)) >= optimise(plain, rows, Ascent(20)) - 1e-3).all()
