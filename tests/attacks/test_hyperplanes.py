"""The shortest step to a hyperplane inside the box: against slow twins, a solver, other scales, and the compiled loop."""

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from stalwart.attacks.hyperplanes import _compiled_step, lengths, step_to_hyperplane, steps_to_hyperplanes
from stalwart.core import jit
from stalwart.core.random import generator

ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}


def bisected(norm, z, slope, gap):
    """Return |d| coordinate by coordinate, the multiplier by bisection; for l1 by taking the steepest coordinates first."""
    room = [(1 - a) if (w > 0) == (gap >= 0) else a for a, w in zip(z, slope, strict=True)]
    steep = [abs(w) for w in slope]
    if norm == "l1":
        left, size = abs(gap), [0.0] * len(z)
        for i in sorted(range(len(z)), key=lambda i: -steep[i]):
            if steep[i] > 0:
                size[i] = min(room[i], left / steep[i])
                left -= steep[i] * size[i]
        return size
    low, high = 0.0, 1e12
    for _ in range(300):
        level = (low + high) / 2
        size = [
            0.0 if m == 0 else min(level * (m if norm == "l2" else 1.0), r) for m, r in zip(steep, room, strict=True)
        ]
        if sum(m * s for m, s in zip(steep, size, strict=True)) < abs(gap):
            low = level
        else:
            high = level
    return size


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.sampled_from(["linf", "l2", "l1"]), st.integers(0, 10_000), st.integers(1, 7), st.floats(0.01, 3))
def test_the_step_is_that_of_the_slow_twin(norm, seed, width, reach):
    source = generator(seed)
    z = torch.rand(3, width, generator=source, dtype=torch.float64)
    z[torch.rand(3, width, generator=source) < 0.2] = 0.0
    slope = torch.randn(3, width, generator=source, dtype=torch.float64).round(decimals=1)
    gap = reach * torch.randn(3, generator=source, dtype=torch.float64)
    step = step_to_hyperplane(norm, z, slope, gap, 0.0, 1.0)
    assert ((z + step >= -1e-12) & (z + step <= 1 + 1e-12)).all()
    for i in range(3):
        wanted = torch.tensor(bisected(norm, z[i].tolist(), slope[i].tolist(), float(gap[i])), dtype=torch.float64)
        if norm == "l1":  # equally steep coordinates may share the step
            assert float(step[i].abs().sum()) == pytest.approx(float(wanted.sum()), abs=1e-9)
        elif norm == "linf":  # where all are at their faces the level is free
            assert torch.allclose(step[i].abs(), wanted, atol=1e-9) or (slope[i] == 0).all()
        else:
            assert torch.allclose(step[i].abs(), wanted, atol=1e-9)
        most = float((torch.where(slope[i] * gap[i] > 0, 1 - z[i], z[i]) * slope[i].abs()).sum())
        assert float((slope[i] * step[i]).sum()) == pytest.approx(
            math.copysign(min(abs(gap[i]), most), gap[i]), abs=1e-9
        )


@pytest.mark.skipif(not jit.available(), reason="needs numba")
@pytest.mark.parametrize("width", [1, 3, 100])
def test_the_compiled_step_is_that_of_torch(width):
    source = generator(width)
    z, slope = torch.rand(400, width, generator=source), torch.randn(400, width, generator=source)
    z[torch.rand(400, width, generator=source) < 0.2] = 0.0
    slope[torch.rand(400, width, generator=source) < 0.2] = 0.0
    slope[0] = 0.0
    gap = torch.linspace(-1.2, 1.2, 400) * slope.abs().sum(1)
    gap[200:210] = 0.0
    step = _compiled_step(z, slope, gap, 0.0, 1.0)
    wanted = step_to_hyperplane("linf", z.double(), slope.double(), gap.double(), 0.0, 1.0)
    reached = (slope * step).sum(1)
    assert torch.allclose(reached, (slope * wanted).sum(1).float(), atol=1e-4)
    assert torch.allclose(step, wanted.float(), atol=1e-4)
    assert ((z + step >= 0) & (z + step <= 1)).all()
    assert (reached[:20] > gap[:20] + 0.01).any(), "some gaps are out of reach"


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_shorter_step_is_found_by_a_solver(norm):
    source = generator(5)
    for _ in range(5):
        z = torch.rand(1, 5, generator=source, dtype=torch.float64)
        slope = torch.randn(1, 5, generator=source, dtype=torch.float64)
        gap = 0.3 * (slope.abs() * torch.where(slope > 0, 1 - z, z)).sum(1)
        step = step_to_hyperplane(norm, z, slope, gap, 0.0, 1.0)
        own, w, box = float(lengths(norm, step)), slope[0].numpy(), [(-float(a), 1 - float(a)) for a in z[0]]
        if norm == "l2":
            plane = {"type": "eq", "fun": lambda d, w=w, g=float(gap): w @ d - g}
            found = minimize(lambda d: d @ d, step[0].numpy() * 0, bounds=box, constraints=plane)
            assert own == pytest.approx(math.sqrt(found.fun), abs=1e-5)
            continue
        # Variables d and its size t: one t for all in linf, one a coordinate in l1.
        sizes = 1 if norm == "linf" else 5
        above = torch.zeros(10, 5 + sizes, dtype=torch.float64)
        for i in range(5):
            above[2 * i, i], above[2 * i + 1, i] = 1.0, -1.0
            above[2 * i : 2 * i + 2, 5 + (0 if sizes == 1 else i)] = -1.0
        equal = [[*w, *[0.0] * sizes]]
        found = linprog(
            [0.0] * 5 + [1.0] * sizes, above.numpy(), [0.0] * 10, equal, [float(gap)], [*box, *[(0, None)] * sizes]
        )
        assert own == pytest.approx(found.fun, abs=1e-9)


def by_bisection(gap, slope, lower, upper, norm):
    """Return the least size of a change that closes the gap, by halving the radius of the ball; the slow twin."""
    low, high = 0.0, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        if norm == "linf":
            move = slope.sign() * middle
        elif norm == "l2":
            # The best point of ball and box is clip(t s), for the largest t inside the ball; t by halving too.
            small, large = 0.0, 1e9
            for _ in range(100):
                t = (small + large) / 2
                inside = torch.minimum(torch.maximum(t * slope, lower), upper).norm() <= middle
                small, large = (t, large) if inside else (small, t)
            move = small * slope
        else:
            budget, move = middle, torch.zeros_like(slope)
            for i in slope.abs().argsort(descending=True):
                move[i] = slope[i].sign() * min(budget, float(upper[i] if slope[i] > 0 else -lower[i]))
                budget -= abs(float(move[i]))
        gained = (slope * torch.minimum(torch.maximum(move, lower), upper)).sum()
        low, high = (low, middle) if gained >= gap else (middle, high)
    return high


@pytest.mark.parametrize("norm", ORDER)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_steps_to_several_planes_are_those_of_the_slow_twin(norm, dtype, within):
    source = generator(3)
    slope = torch.randn(6, 7, generator=source, dtype=torch.float64).to(dtype)
    slope[0, :3] = 0
    z = torch.rand(7, generator=source).to(dtype)
    z[2], z[4] = 1.0, 0.0
    most = (slope * torch.where(slope > 0, 1 - z, -z)).sum(1)
    gap = most * torch.tensor([0.1, 0.4, 0.7, 0.95, 0.0, 1.5], dtype=dtype)
    change, size, short = (
        one[0] for one in steps_to_hyperplanes(norm, z[None], slope[None], gap[None], low=0.0, high=1.0)
    )
    assert change.dtype == size.dtype == short.dtype == dtype
    assert ((change >= -z) & (change <= 1 - z)).all()
    assert torch.allclose((slope * change).sum(1), gap * (1 - short), atol=within)
    assert torch.allclose(short, torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1 / 3], dtype=dtype), atol=within), (
        "a gap too wide for the box leaves the rest"
    )
    assert torch.allclose(size, change.norm(p=ORDER[norm], dim=1))
    for one in range(4):
        wide, box = slope[one].double(), (-z.double(), 1 - z.double())
        twin = by_bisection(gap[one].double(), wide, *box, norm)
        assert float(size[one]) == pytest.approx(twin, rel=1e-6 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("norm", ORDER)
@pytest.mark.parametrize("power", [-80, 60])
def test_the_scale_of_a_slope_does_not_matter(norm, power):
    source = generator(7)
    z, slope = torch.rand(20, 30, generator=source), torch.randn(20, 30, generator=source)
    gap = torch.linspace(0.0, 0.4, 20) * slope.abs().sum(1)
    step = step_to_hyperplane(norm, z, slope, gap, 0.0, 1.0)
    scaled = step_to_hyperplane(norm, z, slope * 2.0**power, gap * 2.0**power, 0.0, 1.0)
    assert torch.equal(step, scaled)
    assert (step != 0).any(1)[1:].all()
