"""Piecewise-linear functions: every strategy's lines enclose, touch and stay where the paper's tables put them."""

import itertools
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from stalwart.bounds.elementwise import ELEMENTWISE
from stalwart.bounds.lines import Lines, check_strategy, floor
from stalwart.core.errors import UsageError
from stalwart.core.random import generator
from stalwart.core.registry import lookup

STRATEGIES = ["tight", "adaptive", "one", "same-slope", "constant"]
DTYPES = [torch.float32, torch.float64]
SETTINGS = hypothesis.settings(max_examples=8, deadline=None)
N = 64

# Intervals narrower than this get a smaller slope than their chord's, so that gradients stay finite; lines miss f by as much.
NARROW = {dtype: 2 * floor(torch.zeros((), dtype=dtype)) for dtype in DTYPES}


def make(name, **options):
    return lookup("elementwise function", ELEMENTWISE, name)(**options)


def per_entry(low, high, seed=7, entries=N):
    return low + (high - low) * torch.rand(entries, generator=generator(seed), dtype=torch.float64)


# Parameters with one value an entry sit beside plain ones; numbers are exact in float32, so that both dtypes mean the same.
FUNCTIONS = {
    "relu": lambda n=N: make("relu"),
    "leaky": lambda n=N: make("leaky_relu", negative_slope=0.125),
    "leaky-flat": lambda n=N: make("leaky_relu", negative_slope=1.0),
    "leaky-steep": lambda n=N: make("leaky_relu", negative_slope=1.5),
    "leaky-negative": lambda n=N: make("leaky_relu", negative_slope=-0.25),
    "prelu": lambda n=N: make("prelu", weight=per_entry(-0.5, 1.75, entries=n).float()),
    "abs": lambda n=N: make("abs"),
    "clamp": lambda n=N: make("clamp", low=-0.375, high=1.25),
    "clamp-tensor": lambda n=N: make("clamp", low=per_entry(-1, 0, 3, n).float(), high=per_entry(0, 1, 4, n).float()),
    "clamp-point": lambda n=N: make("clamp", low=0.5, high=0.5),
    "clamp-low": lambda n=N: make("clamp", low=-0.375),
    "clamp-high": lambda n=N: make("clamp", high=1.25),
    "hardtanh": lambda n=N: make("hardtanh"),
    "relu6": lambda n=N: make("relu6"),
    "ramp": lambda n=N: make("param_ramp", r=per_entry(1e-4, 2, entries=n).float()),
    "ramp-leaky": lambda n=N: make("param_ramp", r=per_entry(1e-4, 2, entries=n).float(), eta=0.125),
    "ramp-eta": lambda n=N: make("param_ramp", r=per_entry(1e-4, 2, entries=n).float(), eta=torch.tensor(0.0625)),
}


def draw_ends(seed, dtype, n=N):
    """Intervals of all kinds: one point, tiny, ordinary, huge, on either side of 0, straddling it, ending at 0."""
    source = generator(seed)
    kind = torch.randint(8, (n,), generator=source)
    centre = torch.randn(n, generator=source, dtype=torch.float64)
    radius = torch.rand(n, generator=source, dtype=torch.float64)
    scale = torch.tensor([1.0, 1.0, 1.0, 1e-20, 1e10, 1e-6, 3.0, 0.0], dtype=torch.float64)[kind]
    size = torch.tensor([1.0, 0.0, 1e-9, 1e-20, 1e10, 1.0, 3.0, 1.0], dtype=torch.float64)[kind]
    low, high = (centre * scale - radius * size).to(dtype), (centre * scale + radius * size).to(dtype)
    zero = torch.randint(5, (n,), generator=source)
    low = torch.where(zero == 0, torch.minimum(torch.zeros_like(low), high), low)
    high = torch.where(zero == 1, torch.maximum(torch.zeros_like(high), low), high)
    return low, high


def points(f, lower, upper, seed):
    """The ends, the kinks inside, where extremes of piecewise-linear functions are, and some points between: [P, n]."""
    kinks = [torch.as_tensor(kink, dtype=lower.dtype).clamp(lower, upper) for kink in f.breakpoints]
    between = torch.rand(5, *lower.shape, generator=generator(seed), dtype=lower.dtype)
    inner = (lower * (1 - between) + upper * between).clamp(lower, upper)
    return torch.cat([torch.stack([lower, upper, *kinks]), inner])


def wide(x, like):
    """A tensor in a precision in which rounding is negligible beside that of ``like``: float64, or 80 bits."""
    return x.detach().double().numpy().astype(np.float64 if like.dtype == torch.float32 else np.longdouble)


def pieces(f, z):
    """f(z) from its kinks and slopes alone, in the precision of ``z``, an array."""
    kinks = [wide(torch.as_tensor(kink), torch.zeros((), dtype=torch.float64)) for kink in f.breakpoints]
    slopes = [wide(torch.as_tensor(slope), torch.zeros((), dtype=torch.float64)) for slope in f.slopes]
    start = f.value(torch.zeros(z.shape[-1], dtype=torch.float64)).numpy()
    total = start + np.zeros_like(z)
    edges = [-np.inf, *kinks, np.inf]
    for low, high, slope in zip(edges[:-1], edges[1:], slopes, strict=True):
        total = total + slope * (np.clip(z, low, high) - np.clip(np.zeros_like(z), low, high))
    return total


def gaps(f, lines: Lines, z):
    """f above its lower line, and its upper line above f, at points z."""
    at, value = wide(z, z), pieces(f, wide(z, z))
    low = wide(lines.lower_slope, z) * at + wide(lines.lower_intercept, z)
    high = wide(lines.upper_slope, z) * at + wide(lines.upper_intercept, z)
    return value - low, high - value


def terms(f, lines: Lines, lower, upper):
    """The sizes that rounding errors of a line are relative to: slope times the farther end, and f's own pieces."""
    reach = np.maximum(np.abs(wide(lower, lower)), np.abs(wide(upper, lower)))
    slope = np.maximum(np.abs(wide(lines.lower_slope, lower)), np.abs(wide(lines.upper_slope, lower)))
    kinks = [np.abs(wide(torch.as_tensor(kink), lower)) for kink in f.breakpoints]
    steepness = sum(np.abs(wide(torch.as_tensor(one), lower)) for one in f.slopes)
    return (slope + steepness) * reach + steepness * np.maximum.reduce(np.broadcast_arrays(*kinks))


@pytest.mark.parametrize("name", FUNCTIONS)
@SETTINGS
@hypothesis.given(seed=st.integers(0, 10**6), dtype=st.sampled_from(DTYPES), strategy=st.sampled_from(STRATEGIES))
def test_lines_enclose_and_touch(name, seed, dtype, strategy):
    f = FUNCTIONS[name]()
    lower, upper = draw_ends(seed, dtype)
    lines = f.lines(lower, upper, strategy)
    z = points(f, lower, upper, seed)
    # A few roundings of terms of this size: a handful of units in the last place, far below any real error.
    tolerance = 4 * torch.finfo(dtype).eps * terms(f, lines, lower, upper) + 1e-37
    below, above = gaps(f, lines, z)
    assert (below >= -tolerance).all()
    assert (above >= -tolerance).all()
    corners, near = len(z) - 5, tolerance + NARROW[dtype]
    assert (below[:corners].min(0) <= near).all()
    assert (above[:corners].min(0) <= near).all()
    for part in (lines.lower_slope, lines.lower_intercept, lines.upper_slope, lines.upper_intercept):
        assert part.dtype == dtype
        assert part.shape == lower.shape
    # Moved outward, no tolerance at all is needed.
    below, above = gaps(f, f.outward(lines, lower, upper), z)
    assert (below >= 0).all()
    assert (above >= 0).all()


@pytest.mark.parametrize("name", FUNCTIONS)
@SETTINGS
@hypothesis.given(seed=st.integers(0, 10**6), dtype=st.sampled_from(DTYPES), size=st.sampled_from([0.5, 3.0, 1e3]))
def test_lines_of_any_given_slope_enclose_and_touch(name, seed, dtype, size):
    f = FUNCTIONS[name]()
    lower, upper = draw_ends(seed, dtype)
    slopes = size * torch.randn(2, 3, N, generator=generator(seed), dtype=dtype)
    z = points(f, lower, upper, seed)
    given = f.lines_with_slope(lower, upper, slopes[0], slopes[1])
    assert given.lower_intercept.shape == (3, N)
    settled = f.linear_on(lower, upper)
    usual = f.lines(lower, upper, "adaptive")
    assert torch.equal(given.lower_slope, torch.where(settled, usual.lower_slope, slopes[0]))
    assert torch.equal(given.upper_slope, torch.where(settled, usual.upper_slope, slopes[1]))
    for k in range(3):
        parts = (given.lower_slope, given.lower_intercept, given.upper_slope, given.upper_intercept)
        lines = Lines(*(part[k] for part in parts))
        tolerance = 4 * torch.finfo(dtype).eps * terms(f, lines, lower, upper) + 1e-37
        below, above = gaps(f, lines, z)
        assert (below >= -tolerance).all()
        assert (above >= -tolerance).all()
        assert (below[: len(z) - 5].min(0) <= tolerance + NARROW[dtype]).all()
        assert (above[: len(z) - 5].min(0) <= tolerance + NARROW[dtype]).all()
        below, above = gaps(f, f.outward(lines, lower, upper), z)
        assert (below >= 0).all()
        assert (above >= 0).all()
    one_sided = f.lines_with_slope(lower, upper, slopes[0, 0])
    assert torch.equal(one_sided.upper_slope, usual.upper_slope)
    assert torch.equal(one_sided.upper_intercept, usual.upper_intercept)
    assert torch.equal(one_sided.lower_intercept, given.lower_intercept[0])


@pytest.mark.parametrize("name", FUNCTIONS)
@SETTINGS
@hypothesis.given(seed=st.integers(0, 10**6), dtype=st.sampled_from(DTYPES))
def test_intervals_are_exact_and_linear_pieces_are_known(name, seed, dtype):
    f = FUNCTIONS[name]()
    lower, upper = draw_ends(seed, dtype)
    low, high = f.interval(lower, upper)
    values = pieces(f, wide(points(f, lower, upper, seed), lower))
    size = 4 * torch.finfo(dtype).eps * np.abs(values).max(0) + 1e-37
    assert (np.abs(wide(low, lower) - values.min(0)) <= size).all()
    assert (np.abs(wide(high, lower) - values.max(0)) <= size).all()
    low, high = f.outward_interval(lower, upper)
    assert (wide(low, lower) <= values.min(0)).all()
    assert (wide(high, lower) >= values.max(0)).all()
    kinks = torch.stack([torch.as_tensor(kink, dtype=dtype).expand(N) for kink in f.breakpoints])
    assert torch.equal(f.linear_on(lower, upper), ~((kinks > lower) & (kinks < upper)).any(0))
    # On one piece both lines are that piece, whatever the strategy.
    for strategy in STRATEGIES[:4]:
        lines, settled = f.lines(lower, upper, strategy), f.linear_on(lower, upper) & (upper - lower > NARROW[dtype])
        assert torch.equal(lines.lower_slope[settled], lines.upper_slope[settled])


def leaky_by_table(eta, lo, u, strategy):
    """Slope and intercept of the lower and upper line on [lo, u], from the table for leaky ReLU."""
    if strategy == "constant":
        return (0.0, lo if lo >= 0 else eta * lo), (0.0, u if u >= 0 else eta * u)
    if u <= 0:
        return (eta, 0.0), (eta, 0.0)
    if lo >= 0:
        return (1.0, 0.0), (1.0, 0.0)
    slope = (u - eta * lo) / (u - lo)
    upper = slope, (eta - 1) * lo * u / (u - lo)
    lower = {"tight": eta, "adaptive": 1.0 if u >= -lo else eta, "one": 1.0, "same-slope": slope}[strategy]
    return (lower, 0.0), upper


def ramp_by_table(eta, r, lo, u, strategy):
    """The same for ParamRamp, with b = (1 - eta) r; "tight" and "adaptive" only."""
    b, adaptive = (1 - eta) * r, strategy == "adaptive"
    if u <= 0:
        return (eta, 0.0), (eta, 0.0)
    if r <= lo:
        return (eta, b), (eta, b)
    if lo < 0 and u <= r:
        return leaky_by_table(eta, lo, u, strategy)
    if lo >= 0 and u <= r:
        return (1.0, 0.0), (1.0, 0.0)
    if lo >= 0:
        lower = (eta * u + b - lo) / (u - lo), ((1 - eta) * u - b) * lo / (u - lo)
        return lower, (1.0, 0.0) if adaptive and u - r <= r - lo else (eta, b)
    upper = ((r - eta * lo) / (r - lo), (eta - 1) * lo * r / (r - lo)) if adaptive and u - r <= r - lo else (eta, b)
    return ((eta * u + b) / u, 0.0) if adaptive and -lo <= u else (eta, 0.0), upper


def table_cases(seed, n):
    ends = 2 * torch.randn(2, n, generator=generator(seed), dtype=torch.float64)
    ends = torch.where(torch.rand(2, n, generator=generator(seed, "grid")) < 0.3, ends.round(), ends)
    return ends.amin(0), ends.amax(0)


def assert_rows(lines, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    found = torch.stack([lines.lower_slope, lines.lower_intercept, lines.upper_slope, lines.upper_intercept], 1)
    assert torch.allclose(found, expected.flatten(1), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("eta", [0.0, 0.01, 0.3])
def test_leaky_relu_follows_the_table(eta, strategy):
    lower, upper = table_cases(1, 2000)
    lines = make("leaky_relu", negative_slope=eta).lines(lower, upper, strategy)
    rows = [leaky_by_table(eta, *case, strategy) for case in zip(lower.tolist(), upper.tolist(), strict=True)]
    keep = (lower != upper) | (lower != 0)  # at the kink itself every slope is exact
    assert_rows(
        Lines(*(getattr(lines, part)[keep] for part in vars(lines))), [rows[k] for k in keep.nonzero().flatten()]
    )


@pytest.mark.parametrize("strategy", ["tight", "adaptive"])
@pytest.mark.parametrize("eta", [0.0, 0.01, 0.3])
def test_param_ramp_follows_the_table(eta, strategy):
    lower, upper = table_cases(2, 4000)
    r = 0.5 + 2 * torch.rand(len(lower), generator=generator(3), dtype=torch.float64)
    r = torch.where(torch.rand(len(r), generator=generator(4)) < 0.3, torch.ones_like(r), r)
    lines = make("param_ramp", r=r, eta=eta).lines(lower, upper, strategy)
    cases = zip(r.tolist(), lower.tolist(), upper.tolist(), strict=True)
    rows = [ramp_by_table(eta, *case, strategy) for case in cases]
    # Where one point is a kink every slope is exact.
    keep = (lower != upper) | ((lower != 0) & (lower != r))
    assert_rows(
        Lines(*(getattr(lines, part)[keep] for part in vars(lines))), [rows[k] for k in keep.nonzero().flatten()]
    )


def band_excess(f, lower, upper, strategy):
    """How far the lines leave [min f, max f] on [l, u], in each case."""
    lines = f.lines(lower, upper, strategy)
    low, high = f.interval(lower, upper)
    below = torch.stack([low - lines.lower_slope * z - lines.lower_intercept for z in (lower, upper)]).amax(0)
    above = torch.stack([lines.upper_slope * z + lines.upper_intercept - high for z in (lower, upper)]).amax(0)
    return torch.maximum(below, above)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tight_lines_stay_inside_the_constant_band_in_20000_cases(name):
    n = 20000
    f = FUNCTIONS[name](n)
    source = generator(5)
    centre = torch.randn(n, generator=source, dtype=torch.float64)
    radius = torch.rand(n, generator=source, dtype=torch.float64) * 3
    for strategy in ("tight", "constant"):
        assert (band_excess(f, centre - radius, centre + radius, strategy) <= 1e-14).all()
    if name not in ("leaky-flat", "clamp-point", "prelu"):
        # The paper's finding: these lines are valid and yet looser than interval bound propagation, in many cases.
        assert (band_excess(f, centre - radius, centre + radius, "adaptive") > 1e-3).sum() > 1000


def hull_value(xs, ys, at):
    """The lower convex hull of points at ``at``: the lowest of all segments above it."""
    best = np.inf
    for (x0, y0), (x1, y1) in itertools.combinations(zip(xs, ys, strict=True), 2):
        if x0 <= at <= x1:
            best = min(best, y0 if x1 == x0 else y0 + (y1 - y0) * (at - x0) / (x1 - x0))
    return best


@pytest.mark.parametrize("name", FUNCTIONS)
def test_adaptive_lines_are_the_hull_at_the_midpoint_and_tight_ones_at_the_extremes(name):
    f = FUNCTIONS[name]()
    source = generator(6)
    centre, radius = (
        torch.randn(N, generator=source, dtype=torch.float64),
        torch.rand(N, generator=source, dtype=torch.float64),
    )
    lower, upper = centre - 2 * radius, centre + 2 * radius
    corners = torch.stack(
        [lower, upper, *(torch.as_tensor(kink).double().clamp(lower, upper) for kink in f.breakpoints)]
    )
    corners = corners.sort(0).values
    values = f.value(corners)
    adaptive, tight = f.lines(lower, upper, "adaptive"), f.lines(lower, upper, "tight")
    for k in range(N):
        xs, ys = corners[:, k].tolist(), values[:, k].tolist()
        bottom, top = xs[int(np.argmin(ys))], xs[int(np.argmax(ys))]
        for lines, below, above in ((adaptive, float(centre[k]), float(centre[k])), (tight, bottom, top)):
            low = float(lines.lower_slope[k]) * below + float(lines.lower_intercept[k])
            high = float(lines.upper_slope[k]) * above + float(lines.upper_intercept[k])
            assert low == pytest.approx(hull_value(xs, ys, below), abs=1e-12)
            assert high == pytest.approx(-hull_value(xs, [-y for y in ys], above), abs=1e-12)


def test_outward_lines_hold_in_exact_arithmetic_where_rounded_ones_fail():
    source = generator(8)
    n = 300
    failures = 0
    for name, dtype in itertools.product(("relu", "leaky", "ramp-leaky", "clamp"), DTYPES):
        f = FUNCTIONS[name](n)
        centre = torch.randn(n, generator=source, dtype=dtype)
        radius = torch.rand(n, generator=source, dtype=dtype)
        lower, upper = centre - radius, centre + radius
        lines = f.lines(lower, upper, "adaptive")
        safe = f.outward(lines, lower, upper)
        kinks = [torch.as_tensor(kink).expand(n).tolist() for kink in f.breakpoints]
        slopes = [[Fraction(one)] * n for one in f.slopes]
        for k in range(n):
            own = [Fraction(kink[k]) for kink in kinks]
            for z in [Fraction(float(lower[k])), Fraction(float(upper[k]))]:
                value = exact_value(own, [slope[k] for slope in slopes], z, name == "clamp")
                for kind, found in (("rounded", lines), ("safe", safe)):
                    low = Fraction(float(found.lower_slope[k])) * z + Fraction(float(found.lower_intercept[k]))
                    high = Fraction(float(found.upper_slope[k])) * z + Fraction(float(found.upper_intercept[k]))
                    if kind == "safe":
                        assert low <= value <= high
                    else:
                        failures += not low <= value <= high
    assert failures > 50


def exact_value(kinks, slopes, z, clamp):
    if len(kinks) == 1:
        return slopes[0] * min(z, kinks[0]) + slopes[1] * max(z, kinks[0])
    inside = min(max(z, kinks[0]), kinks[1])
    return inside if clamp else inside + slopes[0] * (z - inside)


def crown_of_two_layers(f, strategy):
    """Bounds of a₁ + a₂ with a = f(W x), W = [[1, 1], [1, -1]], x in [-1, 1]²: z in [-2, 2]², then back through the lines."""
    first = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    reach = first.abs().sum(1)
    lines = f.lines(-reach, reach, strategy)
    low = lines.lower_intercept.sum() - (lines.lower_slope @ first).abs().sum()
    high = lines.upper_intercept.sum() + (lines.upper_slope @ first).abs().sum()
    return float(low), float(high)


def test_golden_case_of_two_neurons():
    relu, ramp = make("relu"), make("param_ramp", r=torch.ones(2, dtype=torch.float64))
    assert crown_of_two_layers(relu, "constant") == (0, 4)
    assert crown_of_two_layers(relu, "tight") == (0, 3)
    assert crown_of_two_layers(relu, "adaptive") == (-2, 3)
    assert crown_of_two_layers(ramp, "constant") == (0, 2)
    assert crown_of_two_layers(ramp, "tight") == (0, 2)
    assert crown_of_two_layers(ramp, "adaptive") == pytest.approx((-1, 2), abs=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_finite_at_every_interval(name, dtype):
    info = torch.finfo(dtype)
    sizes = [0.0, info.tiny / 8, info.tiny, 1e-30, 1e-12, 0.03, 0.5, 1.0, 1.25, 6.0, 1e4, 1e20]
    ends = [*sizes, *(-size for size in sizes[1:])]
    pairs = torch.tensor([(low, high) for low in ends for high in ends if low <= high], dtype=dtype)
    n = len(pairs)
    f = FUNCTIONS[name](n)
    for strategy in ("tight", "adaptive", "same-slope", "constant", "given"):
        lower, upper = (pairs[:, k].clone().requires_grad_() for k in (0, 1))
        slope = torch.linspace(-2, 2, 3, dtype=dtype)[:, None].expand(3, n).clone().requires_grad_()
        if strategy == "given":
            lines = f.lines_with_slope(lower, upper, slope, slope)
        else:
            lines = f.lines(lower, upper, strategy)
        for part in vars(lines).values():
            assert part.isfinite().all()
            if part.requires_grad:
                found = torch.autograd.grad(part.sum(), [lower, upper, slope], retain_graph=True, allow_unused=True)
                assert all(one is None or one.isfinite().all() for one in found)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_are_right_also_of_parameters(strategy):
    lower = torch.tensor([-1.5, -0.5, 0.25, -2.0, 0.375, 0.125], dtype=torch.float64, requires_grad=True)
    upper = torch.tensor([0.25, 2.5, 0.5, -0.5, 1.25, 3.0], dtype=torch.float64, requires_grad=True)
    r = torch.tensor([0.75, 0.75, 0.875, 0.75, 1.0, 0.75], dtype=torch.float64, requires_grad=True)
    eta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    slope = torch.tensor([[0.2], [-0.6], [1.7]], dtype=torch.float64).expand(3, 6).clone().requires_grad_()

    def ramp(*parts):
        lower, upper, r, eta, slope = parts
        f = make("param_ramp", r=r, eta=eta)
        given = f.lines_with_slope(lower, upper, slope)
        return *vars(f.lines(lower, upper, strategy)).values(), given.lower_intercept, *f.interval(lower, upper)

    def prelu(*parts):
        return tuple(vars(make("prelu", weight=parts[2]).lines(parts[0], parts[1], strategy)).values())

    assert torch.autograd.gradcheck(ramp, (lower, upper, r, eta, slope))
    assert torch.autograd.gradcheck(prelu, (lower, upper, r))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_ends_give_nan_lines(name):
    f, nan = FUNCTIONS[name](3), float("nan")
    lower, upper = torch.tensor([nan, -1.0, nan]), torch.tensor([1.0, nan, nan])
    slope = torch.full((3,), 0.5)
    given = f.lines_with_slope(lower, upper, slope, slope)
    for lines in [given, *(f.lines(lower, upper, strategy) for strategy in STRATEGIES[:4])]:
        assert (lines.lower_slope * 0.5 + lines.lower_intercept).isnan().all()
        assert (lines.upper_slope * 0.5 + lines.upper_intercept).isnan().all()
    low, high = f.interval(lower, upper)
    assert (low.isnan() >= lower.isnan()).all()
    assert (high.isnan() >= upper.isnan()).all()
    assert not f.linear_on(lower, upper)[2]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("ends", [(-float("inf"), 2.0), (-2.0, float("inf")), (-float("inf"), float("inf"))])
def test_infinite_ends_never_give_a_wrong_finite_line(name, ends):
    f = FUNCTIONS[name](1)
    lower, upper = (torch.tensor([end]) for end in ends)
    z = torch.tensor([-1e30, -2.0, 0.0, 0.5, 2.0, 1e30]).clamp(lower, upper)[:, None]
    value = f.value(z)
    slack = 1e-5 * (1 + value.abs())
    for strategy in STRATEGIES:
        lines = f.lines(lower, upper, strategy)
        # Stated so that NaN passes: it proves nothing.
        assert not (lines.lower_slope * z + lines.lower_intercept > value + slack).any()
        assert not (lines.upper_slope * z + lines.upper_intercept < value - slack).any()


def test_bad_calls_say_what_is_wrong():
    with pytest.raises(UsageError, match="unknown strategy 'tigth'.* Did you mean 'tight'"):
        check_strategy("tigth")
    with pytest.raises(UsageError, match="clamp needs"):
        make("clamp")
    with pytest.raises(UsageError, match="must not be above"):
        make("clamp", low=1.0, high=0.0)
    with pytest.raises(UsageError, match="must not be above"):
        make("param_ramp", r=torch.tensor([0.5, -0.1]))
    with pytest.raises(UsageError, match="outer slope"):
        make("param_ramp", r=torch.tensor([0.5]), eta=1.5)
