"""Smooth functions and steps: intervals and lines are sound without tolerance, and touch."""

import math

import hypothesis
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from stalwart.bounds.curves.gated import GELU, SiLU
from stalwart.bounds.curves.periodic import Cos, Sin
from stalwart.bounds.elementwise import ELEMENTWISE
from stalwart.bounds.lines import Lines
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.core.registry import lookup

STRATEGIES = ["tight", "adaptive", "one", "same-slope", "constant"]
DTYPES = [torch.float32, torch.float64]
SETTINGS = hypothesis.settings(max_examples=4, deadline=None)
N = 48


def make(name, **options):
    return lookup("elementwise function", ELEMENTWISE, name)(**options)


HALF = torch.tensor(0.5)
# name: the function, the same in 40 digits, and its domain: everything, positive numbers or intervals without 0.
CURVES = {
    "sigmoid": (make("sigmoid"), lambda z: 1 / (1 + mpmath.exp(-z)), "all"),
    "tanh": (make("tanh"), mpmath.tanh, "all"),
    "erf": (make("erf"), mpmath.erf, "all"),
    "gelu": (make("gelu"), lambda z: z * mpmath.erfc(-z / mpmath.sqrt(2)) / 2, "all"),
    "gelu-tanh": (
        make("gelu", approximate="tanh"),
        lambda z: z * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (z + mpmath.mpf(0.044715) * z**3))) / 2,
        "all",
    ),
    "silu": (make("silu"), lambda z: z / (1 + mpmath.exp(-z)), "all"),
    "softplus": (make("softplus"), lambda z: z if z > 20 else mpmath.log1p(mpmath.exp(z)), "all"),
    "softplus-low": (
        make("softplus", beta=5.0, threshold=2.0),
        lambda z: z if 5 * z > 2 else mpmath.log1p(mpmath.exp(5 * z)) / 5,
        "all",
    ),
    "elu": (make("elu"), lambda z: z if z > 0 else mpmath.expm1(z), "all"),
    "elu-flat": (make("elu", alpha=0.25), lambda z: z if z > 0 else mpmath.expm1(z) / 4, "all"),
    "elu-steep": (make("elu", alpha=1.75), lambda z: z if z > 0 else mpmath.expm1(z) * 1.75, "all"),
    "exp": (make("exp"), mpmath.exp, "small"),
    "square": (make("square"), lambda z: z**2, "all"),
    "pow3": (make("pow", exponent=3), lambda z: z**3, "all"),
    "pow4": (make("pow", exponent=4.0), lambda z: z**4, "small"),
    "pow5": (make("pow", exponent=5), lambda z: z**5, "small"),
    "log": (make("log"), mpmath.log, "positive"),
    "sqrt": (make("sqrt"), mpmath.sqrt, "positive"),
    "pow2.5": (make("pow", exponent=2.5), lambda z: z ** mpmath.mpf(2.5), "positive"),
    "pow-0.5": (make("pow", exponent=-0.5), lambda z: 1 / mpmath.sqrt(z), "positive"),
    "reciprocal": (make("reciprocal"), lambda z: 1 / z, "signed"),
    "pow-2": (make("pow", exponent=-2), lambda z: z**-2, "signed"),
    "pow-3": (make("pow", exponent=-3), lambda z: z**-3, "signed"),
    "sin": (make("sin"), mpmath.sin, "all"),
    "cos": (make("cos"), mpmath.cos, "all"),
    "sign": (make("sign"), mpmath.sign, "all"),
    "heaviside": (make("heaviside", threshold=0.5), lambda z: mpmath.mpf(z >= 0.5), "all"),
    "fire": (make("fire", threshold=HALF), lambda z: mpmath.mpf(z >= 0.5), "all"),
    "fire-strict": (make("fire", threshold=HALF, strict=True), lambda z: mpmath.mpf(z > 0.5), "all"),
    "keep-soft": (make("keep", threshold=HALF), lambda z: z - 0.5 if z >= 0.5 else z, "all"),
    "keep-hard": (make("keep", threshold=HALF, hard=True), lambda z: mpmath.mpf(0) if z >= 0.5 else z, "all"),
    "keep-strict": (make("keep", threshold=HALF, strict=True), lambda z: z - 0.5 if z > 0.5 else z, "all"),
}
STEPS = ("sign", "heaviside", "fire", "fire-strict")
JUMPS = (*STEPS, "keep-soft", "keep-hard", "keep-strict")
SMOOTH = [name for name in CURVES if name not in JUMPS]


def draw_ends(seed, dtype, domain="all", n=N):
    """Intervals of all kinds in a domain: one point, tiny, ordinary, wide, huge, ending at 0 where that is allowed."""
    source = generator(seed)
    kind = torch.randint(9, (n,), generator=source)
    centre = torch.randn(n, generator=source, dtype=torch.float64)
    radius = torch.rand(n, generator=source, dtype=torch.float64)
    scale = torch.tensor([1.0, 1.0, 1.0, 1e-12, 1e6, 3.0, 3.0, 10.0, 1.0], dtype=torch.float64)[kind]
    size = torch.tensor([1.0, 0.0, 1e-9, 1e-12, 1e6, 3.0, 0.03, 30.0, 1e-4], dtype=torch.float64)[kind]
    low, high = centre * scale - radius * size, centre * scale + radius * size
    zero = torch.randint(6, (n,), generator=source)
    low, high = torch.where(zero == 0, low.clamp_max(0), low), torch.where(zero == 1, high.clamp_min(0), high)
    if domain == "small":
        low, high = low.clamp(-30, 30), high.clamp(-30, 30)
    if domain in ("positive", "signed"):
        near, far = torch.minimum(low.abs(), high.abs()) + 1e-3, torch.maximum(low.abs(), high.abs()) + 1e-3
        side = zero % 2 == 0 if domain == "signed" else torch.ones_like(near, dtype=torch.bool)
        low, high = torch.where(side, near, -far), torch.where(side, far, -near)
    return low.to(dtype), high.to(dtype)


def samples(lower, upper, count=400):
    """Points of each interval in float64, dense near both ends: [P, n]."""
    low, high = lower.double(), upper.double()
    fine = torch.logspace(-14, -3, 40, dtype=torch.float64)
    share = torch.cat([torch.linspace(0, 1, count, dtype=torch.float64), fine, 1 - fine])[:, None]
    return (low * (1 - share) + high * share).clamp(low, high)


def excess(lines: Lines, z, value):
    """How far f leaves the lines, at worst, and the smallest distances: each [n]."""
    low = lines.lower_slope.double() * z + lines.lower_intercept.double()
    high = lines.upper_slope.double() * z + lines.upper_intercept.double()
    return torch.maximum(low - value, value - high).amax(0), (value - low).amin(0), (high - value).amin(0)


def sizes(f, lines: Lines, lower, upper):
    """What rounding is relative to: f's own terms, and slope times the farther end and what shifts it."""
    reach = torch.maximum(lower.abs(), upper.abs()) + (math.pi if isinstance(f, Sin | Cos) else 0)
    slope = torch.maximum(lines.lower_slope.abs(), lines.upper_slope.abs())
    return (torch.maximum(f.magnitude(lower), f.magnitude(upper)) + slope * reach).double()


@pytest.mark.parametrize("name", CURVES)
@SETTINGS
@hypothesis.given(seed=st.integers(0, 10**6), dtype=st.sampled_from(DTYPES))
def test_lines_and_intervals_enclose_dense_samples_without_tolerance(name, seed, dtype):
    f, _, domain = CURVES[name]
    lower, upper = draw_ends(seed, dtype, domain)
    z = samples(lower, upper)
    value = f.value(z)
    low, high = f.interval(lower, upper)
    assert (low.double() <= value.amin(0)).all()
    assert (high.double() >= value.amax(0)).all()
    for strategy in STRATEGIES:
        lines = f.lines(lower, upper, strategy)
        assert (excess(lines, z, value)[0] <= 0).all()
        assert all(part.dtype == dtype and part.shape == lower.shape for part in vars(lines).values())
    slopes = 3 * torch.randn(2, 2, N, generator=generator(seed), dtype=dtype)
    given = f.lines_with_slope(lower, upper, slopes[0], slopes[1])
    for k in range(2):
        assert (excess(Lines(*(part[k] for part in vars(given).values())), z, value)[0] <= 0).all()
    assert torch.equal(given.lower_slope, torch.where(f.linear_on(lower, upper), given.lower_slope, slopes[0]))
    one_sided = f.lines_with_slope(lower, upper, slopes[0, 0])
    assert torch.equal(one_sided.upper_slope, f.lines(lower, upper, "adaptive").upper_slope)


class Careless(GELU):
    """GELU whose search for stationary points returns any point."""

    def stationary(self, slope, low, high, part):
        return (low + 2 * high) / 3


def test_a_wrong_stationary_point_costs_tightness_and_never_soundness():
    f = Careless()
    lower, upper = draw_ends(17, torch.float64, "all", 500)
    z = samples(lower, upper)
    slope = torch.randn(500, generator=generator(18), dtype=torch.float64)
    given = f.lines_with_slope(lower, upper, slope, slope)
    for lines in [given, *(f.lines(lower, upper, strategy) for strategy in STRATEGIES[:4])]:
        assert (excess(lines, z, f.value(z))[0] <= 0).all()
    careful = CURVES["gelu"][0].lines_with_slope(lower, upper, slope, slope)
    assert (given.lower_intercept < careful.lower_intercept - 1e-3).any()


@pytest.mark.parametrize("name", ["sin", "cos"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shifts_by_multiples_of_pi_are_rounded_outward(name, dtype):
    f, _, _ = CURVES[name]
    source = generator(19)
    # Next to multiples of pi, where f and z are small and the shift is not.
    turns = torch.randint(-2, 3, (20000,), generator=source) * (math.pi / 2)
    ends = (turns + 1e-9 * torch.randn(2, 20000, generator=source, dtype=torch.float64)).to(dtype)
    lower, upper = ends.amin(0), ends.amax(0)
    slope = 10 * torch.randn(20000, generator=source, dtype=dtype)
    lines = f.lines_with_slope(lower, upper, slope, slope)
    for z in (lower, upper):
        at, value = z.numpy().astype(np.longdouble), np.sin(z.numpy().astype(np.longdouble))
        value = value if name == "sin" else np.cos(z.numpy().astype(np.longdouble))
        low, bottom, high, top = (part.numpy().astype(np.longdouble) for part in vars(lines).values())
        assert (low * at + bottom <= value).all()
        assert (high * at + top >= value).all()


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_enclosures_hold_against_forty_digits(name, dtype):
    f, exact, domain = CURVES[name]
    lower, upper = draw_ends(11, dtype, domain, 24)
    low, high = f.interval(lower, upper)
    found = [f.lines(lower, upper, strategy) for strategy in ("tight", "adaptive", "same-slope")]
    with mpmath.workdps(40):
        for k in range(24):
            a, b = mpmath.mpf(float(lower[k])), mpmath.mpf(float(upper[k]))
            for z in [a, b, *(a + (b - a) * mpmath.mpf(j) / 7 for j in (1, 3, 5)), a + (b - a) / 10**9]:
                value = exact(z)
                assert float(low[k]) <= value <= float(high[k])
                for lines in found:
                    slope, intercept = (
                        mpmath.mpf(float(lines.lower_slope[k])),
                        mpmath.mpf(float(lines.lower_intercept[k])),
                    )
                    assert slope * z + intercept <= value
                    slope, intercept = (
                        mpmath.mpf(float(lines.upper_slope[k])),
                        mpmath.mpf(float(lines.upper_intercept[k])),
                    )
                    assert slope * z + intercept >= value


def smallest(gap, lower, upper):
    """The minimum of a function of z over each interval: a grid that is dense near 0 and the ends, then narrower ones."""
    near = torch.logspace(-4, 2, 60, dtype=torch.float64)
    jumps = torch.tensor(
        [0.0, math.nextafter(0, -1), math.nextafter(0, 1), 0.5, math.nextafter(0.5, 0), math.nextafter(0.5, 1)],
        dtype=torch.float64,
    )
    around = torch.cat([-near, jumps, near])[:, None].clamp(lower.double(), upper.double())
    z = torch.cat([samples(lower, upper, 300), around]).sort(0).values
    best = torch.full_like(z[0], math.inf)
    for reach in (3, 1, 1, 1, 1, 1):
        found = gap(z)
        best = torch.minimum(best, found.amin(0))
        place = found.argmin(0, keepdim=True)
        first, last = (z.gather(0, (place + step).clamp(0, len(z) - 1)) for step in (-reach, reach))
        z = first + (last - first) * torch.linspace(0, 1, 41, dtype=torch.float64)[:, None]
    return best


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_intervals_and_lines_touch(name, dtype):
    f, _, domain = CURVES[name]
    lower, upper = draw_ends(12, dtype, domain, 100)
    if name in ("sin", "cos"):
        # Elsewhere lines are horizontal, those of given slopes excepted, which are loose there.
        keep = (upper - lower <= 3) & (upper.abs() < 1e3)
        lower, upper = lower[keep], upper[keep]
    slopes = torch.randn(2, len(lower), generator=generator(3), dtype=dtype)
    # Softplus falls at its threshold, by so much.
    fall = {"softplus": 2.1e-9, "softplus-low": 0.0254}.get(name, 0.0) * 2 + 1e-37
    precision = 20 * torch.finfo(dtype).eps
    low, high = f.interval(lower, upper)
    near = precision * torch.maximum(f.magnitude(lower), f.magnitude(upper)).double() + fall
    assert (smallest(lambda z: f.value(z) - low.double(), lower, upper) <= near).all()
    assert (smallest(lambda z: high.double() - f.value(z), lower, upper) <= near).all()
    given = f.lines_with_slope(lower, upper, slopes[0], slopes[1])
    for lines in [given, *(f.lines(lower, upper, strategy) for strategy in STRATEGIES[:4])]:
        near = precision * sizes(f, lines, lower, upper) + fall
        below, above = (
            smallest(
                lambda z, s=sign, a=slope, b=intercept: s * (f.value(z) - a.double() * z - b.double()), lower, upper
            )
            for sign, slope, intercept in (
                (1, lines.lower_slope, lines.lower_intercept),
                (-1, lines.upper_slope, lines.upper_intercept),
            )
        )
        assert (below <= near).all()
        assert (above <= near).all()


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tight_lines_stay_inside_the_constant_band(name, dtype):
    f, _, domain = CURVES[name]
    lower, upper = draw_ends(13, dtype, domain, 20000)
    low, high = (end.double() for end in f.interval(lower, upper))
    lines = f.lines(lower, upper, "tight")
    # Softplus falls at its threshold, by so much; lines across it lie lower and higher by that.
    fall = {"softplus": 2.1e-9, "softplus-low": 0.0254}.get(name, 0.0)
    near = 20 * torch.finfo(dtype).eps * sizes(f, lines, lower, upper) + 1e-37 + fall
    for z in (lower.double(), upper.double()):
        assert (lines.lower_slope.double() * z + lines.lower_intercept.double() >= low - near).all()
        assert (lines.upper_slope.double() * z + lines.upper_intercept.double() <= high + near).all()


def hull(z, value, at):
    """The lower convex hull of one sampled graph at ``at``, by the monotone chain."""
    chain = []
    for point in sorted(zip(z.tolist(), value.tolist(), strict=True)):
        while len(chain) > 1:
            (x0, y0), (x1, y1) = chain[-2:]
            if (x1 - x0) * (point[1] - y0) > (point[0] - x0) * (y1 - y0):
                break
            chain.pop()
        chain.append(point)
    xs, ys = zip(*chain, strict=True)
    return float(np.interp(at, xs, ys))


@pytest.mark.parametrize("name", [name for name in SMOOTH if not name.startswith("softplus")])
def test_adaptive_lines_are_the_hulls_at_the_midpoint(name):
    f, _, domain = CURVES[name]
    source = generator(14)
    centre = 2 * torch.randn(24, generator=source, dtype=torch.float64)
    radius = 1.5 * torch.rand(24, generator=source, dtype=torch.float64)
    lower, upper = centre - radius, centre + radius
    if domain != "all":
        lower, upper = lower.abs().minimum(upper.abs()) + 0.1, lower.abs().maximum(upper.abs()) + 0.1
    if domain == "signed":
        lower, upper = torch.where(centre < 0, -upper, lower), torch.where(centre < 0, -lower, upper)
    lines, middle = f.lines(lower, upper, "adaptive"), (lower + upper) / 2
    z = torch.cat([samples(lower, upper, 2000), torch.zeros_like(lower).clamp(lower, upper)[None]])
    value = f.value(z)
    spread = 1e-6 * (value.amax(0) - value.amin(0)) + 1e-14
    for k in range(24):
        low = float(lines.lower_slope[k] * middle[k] + lines.lower_intercept[k])
        high = float(lines.upper_slope[k] * middle[k] + lines.upper_intercept[k])
        assert low == pytest.approx(hull(z[:, k], value[:, k], middle[k]), abs=float(spread[k]))
        assert high == pytest.approx(-hull(z[:, k], -value[:, k], middle[k]), abs=float(spread[k]))


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "erf", "exp", "elu", "softplus", "log", "sqrt"])
def test_tight_lines_tighten_when_the_interval_shrinks(name):
    f, _, domain = CURVES[name]
    lower, upper = draw_ends(15, torch.float64, "positive" if domain == "positive" else "small", 20000)
    share = torch.rand(2, 20000, generator=generator(16), dtype=torch.float64)
    inner = (lower + share * (upper - lower)).clamp(lower, upper)
    first, last = inner.amin(0), inner.amax(0)
    if name == "softplus":
        keep = upper <= 20  # the fall at the threshold belongs to the interval, not to the lines
        lower, upper, first, last = (end[keep] for end in (lower, upper, first, last))
    outer, own = f.lines(lower, upper, "tight"), f.lines(first, last, "tight")
    near = 1e-13 * (sizes(f, outer, lower, upper) + sizes(f, own, lower, upper))
    for z in (first, last):
        gain = (own.lower_slope - outer.lower_slope) * z + own.lower_intercept - outer.lower_intercept
        loss = (own.upper_slope - outer.upper_slope) * z + own.upper_intercept - outer.upper_intercept
        assert (gain >= -near).all()
        assert (loss <= near).all()


@pytest.mark.parametrize("name", ["gelu", "gelu-tanh", "silu"])
def test_dips_and_inflections_are_zeros_of_derivatives(name):
    f, exact, _ = CURVES[name]
    assert isinstance(f, GELU | SiLU)
    with mpmath.workdps(40):
        dip = mpmath.findroot(lambda z: mpmath.diff(exact, z), -1)
        turn = mpmath.findroot(lambda z: mpmath.diff(exact, z, 2), 2 if name == "silu" else 1.4)
        assert f.dip == float(dip)
        assert f.convex_to == pytest.approx(float(turn), rel=1e-15)
        low, _ = f.interval(torch.tensor([-3.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64))
        assert exact(dip) - 1e-14 <= float(low) <= exact(dip)
    assert f.convex_from == -f.convex_to


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CURVES)
def test_gradients_are_finite_at_every_interval(name, dtype):
    f, _, domain = CURVES[name]
    sizes_ = [0.0, torch.finfo(dtype).tiny / 8, 1e-30, 1e-12, 1e-6, 0.03, 0.5, 1.0, 3.0, 9.0, 30.0, 1e4, 1e10]
    if domain == "small":
        sizes_ = [size for size in sizes_ if size <= 30]
    if domain in ("positive", "signed"):
        sizes_ = [size for size in sizes_ if size >= 1e-6 or (name == "sqrt" and size < 1)]
    signed = sizes_ if domain == "positive" else [*sizes_, *(-size for size in sizes_[::-1])]
    pairs = [(low, high) for low in signed for high in signed if low <= high and (domain != "signed" or low * high > 0)]
    for strategy in ("tight", "adaptive", "same-slope", "given"):
        lower, upper = (torch.tensor([pair[k] for pair in pairs], dtype=dtype, requires_grad=True) for k in (0, 1))
        slope = torch.linspace(-2, 2, 3, dtype=dtype)[:, None].expand(3, len(pairs)).clone().requires_grad_()
        if strategy == "given":
            parts = list(vars(f.lines_with_slope(lower, upper, slope, slope)).values())
        else:
            parts = [*vars(f.lines(lower, upper, strategy)).values(), *f.interval(lower, upper)]
        for part in parts:
            assert part.isfinite().all()
            if part.requires_grad:
                found = torch.autograd.grad(part.sum(), [lower, upper, slope], retain_graph=True, allow_unused=True)
                assert all(one is None or one.isfinite().all() for one in found)


# Across its threshold softplus is taken for the smooth function that it is not: gradients are off by the share of its fall.
@pytest.mark.parametrize("name", [name for name in SMOOTH if name != "softplus-low"])
def test_gradients_are_right(name):
    f, _, domain = CURVES[name]
    ends = [(-1.7, 0.9), (-0.45, 2.3), (-2.6, -0.3), (0.6, 0.62)]
    if domain == "positive":
        ends = [(abs(low) / 2 + 0.1, abs(low) + high + 3) for low, high in ends]
    elif domain == "signed":
        ends = [(low, high) for low, high in ends if low * high > 0]
    lower, upper = (torch.tensor([pair[k] for pair in ends], dtype=torch.float64, requires_grad=True) for k in (0, 1))
    slope = torch.linspace(0.3, 0.8, len(ends), dtype=torch.float64, requires_grad=True)

    def enclosures(*arguments):
        lower, upper, slope = arguments
        given = f.lines_with_slope(lower, upper, slope, slope)
        lines = [f.lines(lower, upper, strategy) for strategy in ("tight", "adaptive", "same-slope")]
        parts = [part for one in lines for part in vars(one).values() if part.requires_grad]
        return torch.stack([*parts, given.lower_intercept, given.upper_intercept, *f.interval(lower, upper)])

    arguments, step = (lower, upper, slope), 1e-6
    numeric = []
    for k, argument in enumerate(arguments):
        moved = [enclosures(*arguments[:k], argument + sign * step, *arguments[k + 1 :]) for sign in (1, -1)]
        numeric.append((moved[0] - moved[1]).detach() / (2 * step))
    for row, *expected in zip(enclosures(*arguments), *numeric, strict=True):
        exact = torch.autograd.grad(row.sum(), arguments, retain_graph=True, allow_unused=True, materialize_grads=True)
        assert torch.allclose(torch.stack(exact), torch.stack(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CURVES)
def test_nan_ends_give_nan(name):
    f, _, _ = CURVES[name]
    lower, upper = torch.tensor([math.nan, 1.0, math.nan]), torch.tensor([1.0, math.nan, math.nan])
    slope = torch.full((3,), 0.5)
    given = f.lines_with_slope(lower, upper, slope, slope)
    for lines in [given, *(f.lines(lower, upper, strategy) for strategy in STRATEGIES[:4])]:
        assert (lines.lower_slope * 0.5 + lines.lower_intercept).isnan().all()
        assert (lines.upper_slope * 0.5 + lines.upper_intercept).isnan().all()
    low, high = f.interval(lower, upper)
    if name in STEPS:
        assert low.isnan().equal(lower.isnan())
        assert high.isnan().equal(upper.isnan())
    else:
        assert low.isnan().all()
        assert high.isnan().all()


def test_domains_are_checked():
    def ends(low, high):
        return torch.tensor([[1.0, low]]), torch.tensor([[2.0, high]])

    with pytest.raises(
        InputError, match=r"reciprocal needs intervals without 0, but entry \[0, 1\] ranges over \[-1, 2\]"
    ):
        make("reciprocal").lines(*ends(-1.0, 2.0), "tight")
    with pytest.raises(InputError, match="reciprocal needs intervals without 0"):
        make("reciprocal").interval(*ends(0.0, 2.0))
    with pytest.raises(InputError, match="log needs intervals above 0"):
        make("log").interval(*ends(0.0, 2.0))
    with pytest.raises(InputError, match="sqrt needs intervals without negative numbers"):
        make("sqrt").interval(*ends(-0.1, 2.0))
    with pytest.raises(InputError, match="pow with exponent -1.5 needs intervals above 0"):
        make("pow", exponent=-1.5).lines_with_slope(*ends(-1.0, 2.0), torch.zeros(1, 2))
    for exponent in (0, 1.0, math.inf):
        with pytest.raises(UsageError, match="exponent other than 0 and 1"):
            make("pow", exponent=exponent)
    with pytest.raises(UsageError, match="positive beta"):
        make("softplus", beta=0.0)
    with pytest.raises(UsageError, match="positive alpha"):
        make("elu", alpha=-1.0)


def test_closed_forms_by_hand():
    lower, upper = torch.tensor([-1.0, 1.0], dtype=torch.float64), torch.tensor([3.0, 2.0], dtype=torch.float64)
    square = make("square").lines(lower, upper, "adaptive")
    # Below: the tangent at the midpoint m, 2 m z - m²; above: the chord, (l + u) z - l u.
    assert torch.allclose(square.lower_slope, torch.tensor([2.0, 3.0], dtype=torch.float64))
    assert torch.allclose(square.lower_intercept, torch.tensor([-1.0, -2.25], dtype=torch.float64))
    assert torch.allclose(square.upper_slope, torch.tensor([2.0, 3.0], dtype=torch.float64))
    assert torch.allclose(square.upper_intercept, torch.tensor([3.0, -2.0], dtype=torch.float64))
    step = make("heaviside", threshold=0.5).lines(lower, upper, "adaptive")
    # On [-1, 3] the midpoint is right of the threshold: below, from (0.5, 0) to (3, 1); above, 1.
    assert torch.allclose(step.lower_slope, torch.tensor([0.4, 0.0], dtype=torch.float64))
    assert torch.allclose(step.lower_intercept, torch.tensor([-0.2, 1.0], dtype=torch.float64))
    assert torch.allclose(step.upper_intercept, torch.ones(2, dtype=torch.float64))
    cube = make("pow", exponent=3).lines(torch.tensor([-2.0]), torch.tensor([5.0]), "tight")
    # The tangent of z³ at 1 passes (-2, -8).
    assert float(cube.lower_slope) == pytest.approx(3.0)
    assert float(cube.lower_intercept) == pytest.approx(-2.0, abs=1e-3)


def test_linear_pieces_are_known():
    lower = torch.tensor([0.25, -1.0, 1.0, 25.0])
    upper = torch.tensor([0.75, -0.5, 1.0, 30.0])
    assert make("heaviside", threshold=0.5).linear_on(lower, upper).tolist() == [False, True, True, True]
    assert make("sign").linear_on(lower, upper).tolist() == [True, True, True, True]
    assert make("elu").linear_on(lower, upper).tolist() == [True, False, True, True]
    assert make("softplus").linear_on(lower, upper).tolist() == [False, False, True, True]
    assert make("tanh").linear_on(lower, upper).tolist() == [False, False, True, False]
    identity = make("softplus").lines(lower, upper, "adaptive")
    assert float(identity.lower_slope[3]) == float(identity.upper_slope[3]) == 1.0
