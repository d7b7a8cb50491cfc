"""Products, maxima and minima of two operands: planes enclose, touch and, when tight, stay in the band."""

from fractions import Fraction

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from stalwart.bounds import planes
from stalwart.core.random import generator

STRATEGIES = ["tight", "adaptive", "one", "same-slope", "constant"]
DTYPES = [torch.float32, torch.float64]
SETTINGS = hypothesis.settings(max_examples=15, deadline=None)
N = 64

PAIRS = {
    "product": (planes.product_interval, planes.product_planes, torch.mul),
    "maximum": (planes.maximum_interval, planes.maximum_planes, torch.maximum),
    "minimum": (planes.minimum_interval, planes.minimum_planes, torch.minimum),
}


def draw_box(seed, dtype, n=N):
    """Boxes of all kinds: points, edges, on either side of 0, apart from each other, tiny and huge."""
    source = generator(seed)
    kind = torch.randint(6, (2, n), generator=source)
    centre, radius = torch.randn(2, n, generator=source).double(), torch.rand(2, n, generator=source).double()
    scale = torch.tensor([1.0, 1.0, 1e-9, 1e6, 3.0, 0.0], dtype=torch.float64)[kind]
    size = torch.tensor([1.0, 0.0, 1e-9, 1e6, 1.0, 1.0], dtype=torch.float64)[kind]
    low, high = (centre * scale - radius * size).to(dtype), (centre * scale + radius * size).to(dtype)
    return low[0], high[0], low[1], high[1]


def points(box, seed, count=20):
    """Corners, ends of the diagonal x = y, and points between: x and y in float64, [P, n]."""
    x_low, x_high, y_low, y_high = (end.double() for end in box)
    corners = [(x, y) for x in (x_low, x_high) for y in (y_low, y_high)]
    corners += [(end.clamp(x_low, x_high), end.clamp(y_low, y_high)) for end in (x_low, x_high, y_low, y_high)]
    share = torch.rand(2, count, len(x_low), generator=generator(seed), dtype=torch.float64)
    x = torch.cat([torch.stack([x for x, _ in corners]), x_low + share[0] * (x_high - x_low)])
    y = torch.cat([torch.stack([y for _, y in corners]), y_low + share[1] * (y_high - y_low)])
    return x.clamp(x_low, x_high), y.clamp(y_low, y_high)


def gaps(found, x, y, value):
    below = value - found.lower_x.double() * x - found.lower_y.double() * y - found.lower_intercept.double()
    above = found.upper_x.double() * x + found.upper_y.double() * y + found.upper_intercept.double() - value
    return below, above


def terms(found, box):
    """What rounding is relative to: slopes times the farther ends, and intercepts."""
    x, y = torch.maximum(box[0].abs(), box[1].abs()).double(), torch.maximum(box[2].abs(), box[3].abs()).double()
    slopes = [
        torch.maximum(found.lower_x.abs(), found.upper_x.abs()),
        torch.maximum(found.lower_y.abs(), found.upper_y.abs()),
    ]
    intercept = torch.maximum(found.lower_intercept.abs(), found.upper_intercept.abs())
    return x * slopes[0].double() + y * slopes[1].double() + intercept.double()


@pytest.mark.parametrize("name", PAIRS)
@SETTINGS
@hypothesis.given(seed=st.integers(0, 10**6), dtype=st.sampled_from(DTYPES), strategy=st.sampled_from(STRATEGIES))
def test_planes_enclose_and_touch(name, seed, dtype, strategy):
    interval, enclose, function = PAIRS[name]
    box = draw_box(seed, dtype)
    x, y = points(box, seed)
    value = function(x, y)
    found = enclose(*box, strategy)
    # A few roundings of terms of this size.
    tolerance = 6 * torch.finfo(dtype).eps * terms(found, box) + 1e-37
    below, above = gaps(found, x, y, value)
    assert (below >= -tolerance).all()
    assert (above >= -tolerance).all()
    assert (below[:8].amin(0) <= tolerance).all()
    assert (above[:8].amin(0) <= tolerance).all()
    safe = planes.outward(found, *box)
    below, above = gaps(safe, x, y, value)
    assert (below >= 0).all()
    assert (above >= 0).all()
    low, high = interval(*box)
    near = 2 * torch.finfo(dtype).eps * value.abs().amax(0) + 1e-37
    assert ((low.double() - value.amin(0)).abs() <= near).all()
    assert ((high.double() - value.amax(0)).abs() <= near).all()
    assert all(part.dtype == dtype and part.shape == box[0].shape for part in vars(found).values())


@pytest.mark.parametrize("name", PAIRS)
def test_tight_planes_stay_inside_the_constant_band_in_20000_cases(name):
    interval, enclose, _ = PAIRS[name]
    source = generator(1)
    centre, radius = torch.randn(2, 2, 20000, generator=source, dtype=torch.float64).unbind()
    box = (
        centre[0] - radius[0].abs(),
        centre[0] + radius[0].abs(),
        centre[1] - radius[1].abs(),
        centre[1] + radius[1].abs(),
    )
    low, high = interval(*box)
    corners = [(x, y) for x in box[:2] for y in box[2:]]

    def excess(strategy):
        found = enclose(*box, strategy)
        below = [low - found.lower_x * x - found.lower_y * y - found.lower_intercept for x, y in corners]
        above = [found.upper_x * x + found.upper_y * y + found.upper_intercept - high for x, y in corners]
        return torch.stack([*below, *above]).amax(0)

    assert (excess("tight") <= 1e-13).all()
    assert (excess("constant") <= 0).all()
    # These planes are valid and yet looser than intervals in many cases.
    assert (excess("adaptive") > 1e-3).sum() > 1000


def test_product_planes_by_hand():
    box = tuple(torch.tensor([end], dtype=torch.float64) for end in (1.0, 3.0, -1.0, 2.0))
    found = planes.product_planes(*box)
    # Below: l_y x + l_x y - l_x l_y is -3 in (3, -1), u_y x + u_x y - u_x u_y is -5 in (1, -1).
    assert [float(part) for part in (found.lower_x, found.lower_y, found.lower_intercept)] == [-1, 1, 1]
    # Above: u_y x + l_x y - l_x u_y is at most 6, in (3, 2); l_y x + u_x y - u_x l_y at most 8, in (1, 2).
    assert [float(part) for part in (found.upper_x, found.upper_y, found.upper_intercept)] == [2, 1, -2]
    square = tuple(torch.tensor([end], dtype=torch.float64) for end in (-1.0, 1.0, -1.0, 1.0))
    # The mean of both planes below is the constant -1; each alone falls to -3.
    assert [float(part) for part in vars(planes.product_planes(*square, "tight")).values()] == [0, 0, -1, 0, 0, 1]


def test_maximum_planes_by_hand():
    box = tuple(torch.tensor([end], dtype=torch.float64) for end in (0.0, 4.0, -1.0, 1.0))
    found = planes.maximum_planes(*box)
    # Below: x. Above: through max(4, 1) = max(4, -1) = 4 and max(0, 1) = 1, so 0.75 x + 1.
    assert [float(part) for part in vars(found).values()] == [1, 0, 0, 0.75, 0, 1]
    apart = tuple(torch.tensor([end], dtype=torch.float64) for end in (2.0, 3.0, -1.0, 1.0))
    assert [float(part) for part in vars(planes.maximum_planes(*apart)).values()] == [1, 0, 0, 1, 0, 0]
    assert [float(part) for part in vars(planes.minimum_planes(*apart)).values()] == [0, 1, 0, 0, 1, 0]


def test_outward_planes_hold_in_exact_arithmetic_where_rounded_ones_fail():
    failures = 0
    for dtype in DTYPES:
        box = draw_box(4, dtype, 300)
        found = planes.product_planes(*box, "tight")
        safe = planes.outward(found, *box)
        for k in range(300):
            x_low, x_high, y_low, y_high = (Fraction(float(end[k])) for end in box)
            for x, y in [(x, y) for x in (x_low, x_high) for y in (y_low, y_high)]:
                for one in (found, safe):
                    a, b, c, d, e, f = (Fraction(float(part[k])) for part in vars(one).values())
                    holds = a * x + b * y + c <= x * y <= d * x + e * y + f
                    assert holds or one is found
                    failures += not holds
    assert failures > 50


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_finite_and_nan_is_kept(name, dtype):
    interval, enclose, _ = PAIRS[name]
    ends = [0.0, 1e-30, 1e-6, 1.0, 3.0, 1e6, -1e-30, -1.0, -3.0, -1e6]
    sides = [(low, high) for low in ends for high in ends if low <= high]
    pairs = torch.tensor([(*x, *y) for x in sides for y in sides[::7]], dtype=dtype)
    for strategy in STRATEGIES:
        box = [end.clone().requires_grad_() for end in pairs.unbind(1)]
        for part in [*vars(enclose(*box, strategy)).values(), *interval(*box)]:
            assert part.isfinite().all()
            if part.requires_grad:
                found = torch.autograd.grad(part.sum(), box, retain_graph=True, allow_unused=True)
                assert all(one is None or one.isfinite().all() for one in found)
    nan = torch.full((4, 4), 1.0, dtype=dtype).fill_diagonal_(float("nan"))
    for strategy in STRATEGIES[:4]:
        found = enclose(*nan.unbind(), strategy)
        assert (found.lower_x + found.lower_y + found.lower_intercept).isnan().all()
        assert (found.upper_x + found.upper_y + found.upper_intercept).isnan().all()


def test_gradients_are_right():
    ends = [(-1.0, 2.0, -3.0, 0.5), (0.5, 2.0, 1.0, 1.5), (-2.0, -1.0, 0.3, 3.0), (0.2, 0.9, 0.25, 0.4)]
    box = [end.clone().requires_grad_() for end in torch.tensor(ends, dtype=torch.float64).unbind(1)]
    for _, enclose, _ in PAIRS.values():
        assert torch.autograd.gradcheck(lambda *box, f=enclose: _tracked(f(*box)), box)


def _tracked(found):
    return tuple(part for part in vars(found).values() if part.requires_grad)
