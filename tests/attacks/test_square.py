"""The Square attack: its proposals by hand, linear models, no gradients, few queries, results inside the set."""

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

import stalwart as sw
from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.attacks.square import Square, _bump, _bumps, _dipole, _move, _window
from stalwart.attacks.square_linf import _Climb, _drawn
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import derive, generator
from stalwart.stochastic import noise

RADII = torch.tensor([0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0], dtype=torch.float64)
WIDE = {"low": -100.0, "high": 100.0}


def test_squares_shrink_as_published():
    attack, published = Square(queries=10001), {}
    for proposal in range(10000):
        published.setdefault(attack.share(proposal), proposal)
    starts = [
        0,
        12,
        52,
        202,
        502,
        1002,
        2002,
        4002,
        6002,
        8002,
    ]  # the schedule's numbers, of 10001 queries instead of 10000
    assert list(published) == [0.8 / 2**n for n in range(10)]
    assert [abs(first - start) <= 1 for first, start in zip(published.values(), starts, strict=True)] == [True] * 10
    assert Square(queries=100).share(99) == 0.8 / 512
    images = torch.zeros(1, 3, 32, 32)
    assert [_window(p, images, 1) for p in (1.0, 0.8, 0.1, 0.8 / 512)] == [(32, 32), (29, 29), (10, 10), (1, 1)]
    assert [_window(p, images, 3) for p in (0.8, 0.1, 0.8 / 512)] == [(29, 29), (11, 11), (3, 3)]


def test_windows_of_flat_images_keep_their_area():
    row = torch.zeros(1, 1, 1, 100)
    assert [_window(p, row, 1) for p in (1.0, 0.8, 0.1, 0.001)] == [(1, 100), (1, 80), (1, 10), (1, 1)]
    assert [_window(p, row, 3) for p in (0.8, 0.001)] == [(1, 80), (1, 3)]
    assert _window(0.5, torch.zeros(1, 1, 4, 50), 1) == (4, 25)
    assert _window(0.5, torch.zeros(1, 1, 50, 4), 1) == (25, 4)


def test_an_linf_proposal_paints_one_square_a_sample():
    proposals = _drawn(5, 200, torch.zeros(200, 3, 8, 8), (3, 3), generator(0))
    number = torch.arange(200)[:, None] % 5
    place, where = (entries[:, 0] for entries in proposals.entries(number))
    eps = torch.linspace(0.1, 0.3, 200)[:, None]
    sides = torch.cat([(-eps).expand(200, 192), eps.expand(200, 192)], 1)
    new = torch.zeros(200, 192).scatter_(1, place, sides.gather(1, where)).view(200, 3, 8, 8)
    places = set()
    for one, size in zip(new, eps.flatten().tolist(), strict=True):
        pixels = one[0].nonzero()
        assert len(pixels) == 9
        assert (pixels.amax(0) - pixels.amin(0)).tolist() == [2, 2]
        places.add(tuple(pixels[0].tolist()))
        for channel in one:
            assert torch.equal(channel.nonzero(), pixels)
            assert channel[channel != 0].unique().abs().tolist() == pytest.approx([size])
    assert places == {(r, c) for r in range(6) for c in range(6)}, "every place, the borders too"
    assert 0.4 < (new.sum((2, 3)) > 0).float().mean() < 0.6


def test_bumps_by_hand():
    like = torch.zeros(1, dtype=torch.float64)
    assert torch.allclose(_bump(3, 3, like) * math.sqrt(1.25**2 + 8 * 0.25**2), torch.tensor(
        [[0.25, 0.25, 0.25], [0.25, 1.25, 0.25], [0.25, 0.25, 0.25]], dtype=torch.float64))  # fmt: skip
    dipole = _dipole(5, 5, like)
    assert (dipole[:2] > 0).all()
    assert (dipole[2:] < 0).all()
    assert float(dipole.norm()) == pytest.approx(1)
    assert torch.allclose(dipole[:2].norm(), dipole[2:].norm())
    assert _dipole(1, 1, like).tolist() == [[-1.0]]


def test_an_l2_proposal_spends_the_whole_radius():
    x, source = torch.zeros(50, 3, 12, 9, dtype=torch.float64), generator(0)
    eps = torch.linspace(0.5, 2, 50, dtype=torch.float64)[:, None, None, None]
    start = _bumps(x, eps, source)
    assert torch.allclose(start.flatten(1).norm(dim=1), eps.flatten())
    change = 0.9 * start
    new = _move(change, eps, 0.05, source)
    assert torch.allclose(new.flatten(1).norm(dim=1), eps.flatten())
    touched = (new != change).any(1)
    assert (touched.sum((1, 2)) <= 18).all()
    # A channel's length grows by its part of what was left of the radius, and no more.
    grown = new.square().sum((2, 3)) - change.square().sum((2, 3))
    assert torch.allclose(grown, (0.19 * eps.flatten().square() / 3)[:, None].expand(50, 3))


def by_hand(model, x, y, eps, queries, seed):
    """Return the search in an linf ball around each input, one after the other but with the same draws."""
    source = generator(seed, "square")
    batch, channels, height, width = x.shape
    sign = lambda *shape: 1 - 2 * (torch.rand(batch, *shape, generator=source, dtype=x.dtype) < 0.5).to(x.dtype)  # noqa: E731
    best = (x + eps * sign(channels, 1, width)).clamp(0, 1)
    margins = lambda z: model(z).gather(1, y[:, None])[:, 0] - model(z).scatter(1, y[:, None], -math.inf).amax(1)  # noqa: E731
    held = margins(best)
    shares = [
        0.8 / 2 ** sum(10000 * k // queries > n for n in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
        for k in range(queries - 1)
    ]
    for k, share in enumerate(shares):
        side = max(round(math.sqrt(share * height * width)), 1)
        if k == 0 or share != shares[k - 1]:  # draws are made for all windows of one size
            first, count = k, shares.count(share)
            rows, columns = (
                (torch.rand(count, batch, generator=source, dtype=x.dtype) * (whole - side + 1)).long()
                for whole in (height, width)
            )
            colours = 1 - 2 * (torch.rand(count, batch, channels, generator=source, dtype=x.dtype) < 0.5).to(x.dtype)
        row, column, colour = rows[k - first], columns[k - first], colours[k - first, :, :, None, None]
        new = best.clone()
        for i in range(batch):
            window = slice(row[i], row[i] + side), slice(column[i], column[i] + side)
            new[i, :, *window] = (x[i, :, *window] + eps * colour[i]).clamp(0, 1)
        value = margins(new)
        better = value < held
        best[better], held[better] = new[better], value[better]
    return best


@torch.no_grad()
def test_the_slow_twin_takes_the_same_steps(digits):
    model, x, y = digits
    model, x, y = nn.Sequential(model, nn.Identity()), x[:8], model(x[:8]).argmax(1)
    eps = 0.02  # so small that none is broken, and the draws stay the same for all
    result = sw.attack("square", queries=600)(model, x, y, within=sw.Linf(eps), seed=7)
    assert not result.success.any()
    # Late in the search several proposals of a sample go together, which is to make no difference.
    twin = by_hand(model, x, y, eps, 600, derive(7, "chunk", 0))
    assert torch.allclose(result.x_adv, twin, atol=1e-6)
    assert not torch.allclose(result.x_adv, x, atol=eps / 2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_binary_linear_models_are_broken_exactly_where_the_closed_form_says(linear_case, seed, loss):
    model, x, y, worst = linear_case(2, seed)
    result = sw.attack("square", queries=400, loss=loss)(model, x, y, within=sw.Linf(RADII, **WIDE))
    least = worst(RADII, 1)
    assert torch.equal(result.success, least <= 0)
    held = ~result.success
    assert 0 < held.sum() < len(x), "both outcomes must occur for this test to mean anything"
    assert torch.allclose(result.margin[held], least[held], atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_most_of_an_l2_radius_is_used_on_a_linear_model(linear_case, seed):
    model, x, y, worst = linear_case(2, seed)
    result = sw.attack("square", queries=1000)(model, x, y, within=sw.L2(RADII, **WIDE))
    least, clean = worst(RADII, 2), worst(torch.zeros(8, dtype=torch.float64), 2)
    assert (result.margin >= least - 1e-9).all()
    held = ~result.success
    assert held[0]
    assert result.success.any()
    assert ((clean - result.margin)[held] >= 0.75 * (clean - least)[held]).all()


@pytest.mark.parametrize("kind", [sw.Linf, sw.L2])
def test_no_gradient_is_used_and_queries_are_counted(digits, counting, kind):
    model, x, y = digits
    within = kind(torch.linspace(0, 0.3 if kind is sw.Linf else 2.0, 60))
    counter = counting(model)
    result = sw.attack("square", queries=80)(counter, x, y, within=within)
    assert counter.backwards == []
    assert not result.cost.backwards.any()
    assert int(result.cost.forwards.sum()) == sum(counter.forwards)
    assert (result.cost.forwards[2:] <= 81).all(), "the first two also stand the oracle's probe"
    held = ~result.success
    # What a proposal leaves as it is has a known answer: nothing can be tried at radius 0.
    assert int(within.radius.argmin()) == 0
    assert int(result.cost.forwards[0]) == 1 + 3 + 1 + 1, "activations, probe, start, verdict"
    assert (result.cost.forwards[2:][held[2:]] > 20).all()
    assert 5 < result.success.sum() < 55
    assert result.cost.forwards[result.success & (within.radius > 0.8 * within.size)].double().mean() < 40
    detached = sw.attack("square", queries=80)(Detached(model), x, y, within=within)
    assert torch.equal(detached.x_adv, result.x_adv)


class Detached(nn.Module):
    """A model that no gradient passes."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).detach()


class Staircase(nn.Module):
    """Rounds its input's mean and so has gradient zero everywhere."""

    def forward(self, x):
        level = (x.flatten(1).mean(1) * 50).round()
        return torch.stack([level, torch.full_like(level, 24.0)], 1)


def test_gradients_that_are_zero_do_not_protect():
    x, y = torch.full((6, 1, 6, 6), 0.55), torch.zeros(6, dtype=torch.long)
    within = sw.Linf(torch.tensor([0.0, 0.02, 0.05, 0.1, 0.2, 0.3]))
    assert not sw.attack("pgd", random_start=False)(Staircase(), x, y, within=within).success.any()
    # 0.55 * 50 rounds to 28; 24 or less needs a mean of 0.49 or less, which eps = 0.1 reaches.
    found = sw.attack("square", queries=300)(Staircase(), x, y, within=within)
    assert found.success.tolist() == [False, False, False, True, True, True]


@pytest.mark.parametrize("eot", [1, 5])
def test_a_randomised_model_is_averaged_and_nothing_leaves(noisy, counting, eot):
    model, x, y = noisy
    counter = counting(model)  # hides cheap_draws: every draw is a pass of its own
    within = sw.Linf(0.3)
    result = sw.attack("square", queries=30, eot=eot)(counter, x, y, within=within)
    assert (result.cost.forwards[2:] == 30 * eot + 20).all()
    assert counter.backwards == []
    assert within.contains(x, result.x_adv).all()
    with noise(model, "off"):
        change = sw.attack("square", queries=30)(model, x, y, within=within)
    assert change.success.sum() > 0


@st.composite
def settings(draw):
    shape = draw(st.sampled_from([(1,), (5,), (2, 3), (1, 4, 4), (3, 5, 2), (3, 11, 7), (2, 3, 4, 4)]))
    batch = draw(st.integers(1, 5))
    eps = [draw(st.sampled_from([0.0, 1e-5, 0.03, 0.3, 5.0])) for _ in range(batch)]
    low, high = draw(st.sampled_from([(0.0, 1.0), (-2.0, 3.0), (0.0, 255.0)]))
    within = draw(st.sampled_from([sw.Linf, sw.L2]))(eps if draw(st.booleans()) else eps[0], low=low, high=high)
    options = {"queries": draw(st.integers(1, 25)), "p_init": draw(st.sampled_from([0.05, 0.8, 1.0]))}
    return shape, batch, within, options, draw(st.sampled_from(["margin", "ce"]))


@hypothesis.settings(max_examples=60)
@hypothesis.given(settings(), st.integers(0, 99), st.integers(2, 5), st.integers(1, 5))
def test_results_are_in_the_set(case, seed, classes, batch_size):
    shape, batch, within, options, loss = case
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 4), nn.ReLU(), nn.Linear(4, classes))
    x = within.low + (within.high - within.low) * torch.rand(batch, *shape, generator=generator(seed))
    y = torch.arange(batch) % classes
    attack = sw.attack("square", loss=loss, **options)
    result = attack(model, x, y, within=within, seed=seed, batch_size=batch_size)
    change = (result.x_adv.double() - x.double()).flatten(1)
    size = change.abs().amax(1) if isinstance(within, sw.Linf) else change.norm(dim=1)
    scale = max(abs(within.low), abs(within.high))
    assert result.x_adv.shape == x.shape
    assert result.x_adv.isfinite().all()
    assert (size <= torch.as_tensor(within.radius) + 1e-6 * scale).all()
    assert ((result.x_adv >= within.low) & (result.x_adv <= within.high)).all()
    assert torch.equal(result.success, result.margin <= 0)


@pytest.mark.parametrize("kind", [sw.Linf, sw.L2])
def test_a_seed_fixes_the_result_and_more_queries_help(digits, kind):
    model, x, y = digits
    within = kind(0.05 if kind is sw.Linf else 0.4)
    run = [
        sw.attack("square", queries=q)(model, x, y, within=within, seed=s)
        for q, s in ((40, 0), (40, 0), (40, 1), (400, 0))
    ]
    assert torch.equal(run[0].x_adv, run[1].x_adv)
    assert not torch.equal(run[0].x_adv, run[2].x_adv)
    assert run[3].margin.mean() < run[0].margin.mean() - 0.05
    noise = sw.attack("noise", trials=400)(model, x, y, within=within)
    assert run[3].margin.mean() < noise.margin.mean() - 0.05


@pytest.mark.parametrize("within", [sw.L0(1), sw.L0(2)])
def test_other_sets_are_refused(digits, within):
    model, x, y = digits
    with pytest.raises(InputError, match="linf, l2 and l1 balls, not in .*use pgd"):
        sw.attack("square")(model, x, y, within=within)
    assert not sw.attack("square").fits(model, within)
    assert sw.attack("square").fits(model, sw.L2(0.1))


@pytest.mark.parametrize("options", [{"queries": 0}, {"p_init": 0.0}, {"p_init": 1.5}, {"loss": "dlr"}, {"steps": 5}])
def test_bad_options(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        sw.attack("square", **options)


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    st.integers(0, 999), st.sampled_from([(1, 1, 5), (1, 6, 6), (3, 5, 4)]), st.booleans(), st.floats(0.0, 1.0)
)
def test_the_compiled_search_looks_at_the_same_points(seed, shape, everything, rising):
    pytest.importorskip("numba")
    source = generator(seed)
    x = torch.rand(4, *shape, generator=source)
    low, high = (x - 0.3).clamp_min(0).flatten(1), (x + 0.3).clamp_max(1).flatten(1)
    # Half of the entries have been painted before, so that many a proposal changes nothing.
    painted = torch.where(torch.rand(low.shape, generator=source) < 0.5, low, high)
    best = torch.where(torch.rand(low.shape, generator=source) < 0.9, painted, x.flatten(1))
    oracle = Oracle(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3)), x)
    oracle.randomised = everything
    climb = _Climb(
        oracle, Goal("margin", torch.zeros(4, dtype=torch.long)), x.shape, torch.arange(4), torch.cat([low, high], 1),
        best, torch.zeros(4), best.clone(), rising=max(rising, 0.001), changing=0.3,
    )  # fmt: skip
    proposals = _drawn(30, 4, x, (min(shape[1], 2), 2), source)
    seen = []
    for step in (climb._compiled, climb._plain):
        tried, points = torch.zeros(4, dtype=torch.long), {}
        while int(tried.min()) < 30:
            before = tried.clone()
            for who, number, z in zip(*step(proposals, tried), strict=True):
                assert before[who] <= number < tried[who]
                assert (int(who), int(number)) not in points
                points[int(who), int(number)] = z
        seen.append(points)
    compiled, plain = seen
    assert compiled.keys() == plain.keys()
    assert all(torch.equal(compiled[key], plain[key]) for key in plain)
    assert len(plain) == 120 if everything else all((z != best[who]).any() for (who, _), z in plain.items())
