"""Attacks on event rasters: binary, inside the set, as few flips as the search allows, closed forms and a slow twin."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from traces import InPlaceCounter, snapshot

import stalwart as sw
from stalwart.attacks.events_base import first_fooling
from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.attacks.probabilistic_pgd import ProbabilisticPGD
from stalwart.attacks.spikefool import across
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.sets import Events
from stalwart.spiking import LIF, EventFrames, SpikingNetwork, with_neurons

FEW = {
    "spikefool": {},
    "binary-pgd": {"steps": 8},
    "probabilistic-pgd": {"steps": 4, "draws": 2, "temperature": 0.5, "start": 0.2},
}
EVERY = pytest.mark.parametrize("name", list(FEW))


def raster(*shape, seed=0, share=0.4, dtype=torch.float32):
    return (torch.rand(shape, generator=generator(seed)) < share).to(dtype)


def spiking():
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))
    model = SpikingNetwork(EventFrames(5), with_neurons(layers, 5, lambda path: LIF(0.7, 0.5)), 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model.eval()


@pytest.fixture(scope="module")
def case():
    """Return a spiking network with rasters [24, 5, 2, 4, 4] that it decides rightly, without a tie."""
    model, x = spiking(), raster(40, 5, 2, 4, 4, seed=3)
    with torch.no_grad():
        logits = model(x)
    two = logits.topk(2, 1).values
    sure = (two[:, 0] > two[:, 1]).nonzero()[:24, 0]
    assert len(sure) == 24
    return model, x[sure], logits.argmax(1)[sure]


def flips(x, z):
    return (x != z).flatten(1).sum(1)


def excess_of(model, z, y):
    with torch.no_grad():
        logits = model(z)
    own = logits.gather(1, y[:, None])[:, 0]
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - own


@EVERY
def test_results_are_binary_and_in_the_set_and_fool_without_a_tie(case, name):
    model, x, y = case
    for within in (Events(200), Events([3 + n for n in range(24)])):
        found = sw.attack(name, **FEW[name])(model, x, y, within=within, seed=0)
        assert ((found.x_adv == 0) | (found.x_adv == 1)).all()
        assert within.contains(x, found.x_adv).all()
        assert (flips(x, found.x_adv) <= torch.as_tensor(within.radius)).all()
        assert torch.equal(found.success, excess_of(model, found.x_adv, y) > 0)
        assert torch.equal(found.success, found.margin < 0)
        assert found.success.sum() >= 12


@EVERY
def test_the_last_flip_is_needed(case, name):
    """The order of flipping does not depend on the cap: with one flip fewer the prefix before is tried, and it fails."""
    model, x, y = case
    attack = sw.attack(name, **FEW[name])
    found = attack(model, x, y, within=Events(200), seed=0)
    done = found.success
    assert done.sum() >= 12
    short = attack(model, x, y, within=Events((flips(x, found.x_adv) - 1).clamp_min(0)), seed=0)
    assert (excess_of(model, short.x_adv, y)[done] <= 0).all()
    assert not short.success[done].any()


@EVERY
def test_the_same_seed_gives_the_same_flips_and_no_query_depends_on_another(case, name):
    model, x, y = case
    attack = sw.attack(name, **FEW[name])
    first = attack(model, x, y, within=Events(100), seed=3)
    again = attack(model, x, y, within=Events(100), seed=3)
    assert torch.equal(first.x_adv, again.x_adv)
    assert torch.equal(first.cost.forwards, again.cost.forwards)
    if name == "spikefool":
        alone = [attack(model, x[n : n + 1], y[n : n + 1], within=Events(100)).x_adv for n in range(6)]
        assert torch.equal(first.x_adv[:6], torch.cat(alone))
        assert torch.equal(first.x_adv, attack(model, x, y, within=Events(100), seed=9).x_adv)
    else:
        assert not torch.equal(first.x_adv, attack(model, x, y, within=Events(100), seed=4).x_adv)


@EVERY
def test_the_model_is_left_alone(name):
    torch.manual_seed(0)
    model = nn.Sequential(
        InPlaceCounter(), nn.Flatten(), nn.Linear(32, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3)
    )
    model[2].weight.requires_grad_(False)
    model[5].bias.grad = torch.ones(3)
    x, y = raster(6, 2, 4, 4), torch.arange(6) % 3
    before, kept = snapshot(model), x.clone()
    sw.attack(name, **FEW[name])(model, x, y, within=Events(5), batch_size=4)
    assert snapshot(model) == before
    assert torch.equal(x, kept)


@EVERY
def test_passes_are_counted(counting, name):
    torch.manual_seed(2)
    model = counting(nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Softplus(), nn.Linear(8, 3)))
    x = raster(7, 2, 4, 4, seed=1)
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    found = sw.attack(name, **FEW[name])(model, x, y, within=Events(6), batch_size=7)
    assert sum(model.forwards) == int(found.cost.forwards.sum())
    assert sum(model.backwards) == int(found.cost.backwards.sum())
    wrong = excess_of(model, x, y) > 0
    assert wrong.any()
    assert (~wrong).any()
    assert (found.cost.backwards[wrong] == 0).all()
    assert torch.equal(found.x_adv[wrong], x[wrong])


def linear(dtype=torch.float64):
    """Return a linear classifier of two classes with rasters, and the least number of flips that change its decision."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 2)).to(dtype)
    x = raster(16, 2, 4, 4, seed=2, dtype=dtype)
    with torch.no_grad():
        logits = model(x)
        y = logits.argmax(1)
        slope = model[1].weight[1 - y] - model[1].weight[y]
        gap = (logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None]))[:, 0]
        gains = (slope * (1 - 2 * x.flatten(1))).sort(1, descending=True).values.cumsum(1)
    assert (gains.amax(1) > gap).all()
    return model, x, y, (gains > gap[:, None]).int().argmax(1) + 1


@pytest.mark.parametrize(
    ("name", "options"),
    [("spikefool", {}), ("spikefool", {"stretch": 5.0}), ("binary-pgd", {"radius": 0.5, "start": 0.0})],
)
def test_linear_models_are_fooled_by_the_fewest_flips(name, options):
    model, x, y, least = linear()
    found = sw.attack(name, **options)(model, x, y, within=Events(32), seed=0)
    assert least.max() > least.min()
    assert torch.equal(flips(x, found.x_adv), least)
    assert found.success.all()
    # One flip fewer is too few: these samples have not converged, whatever is flipped.
    short = sw.attack(name, **options)(model, x, y, within=Events(least - 1), seed=0)
    assert not short.success.any()
    assert torch.equal(flips(x, short.x_adv), least - 1)


def solver_by_hand(x, n, beyond):
    """The loop as published: one coordinate after the other, by as much as the plane needs, within [0, 1]."""
    z, left, at = x.clone(), n.clone(), int(n.abs().argmax())
    sign = start = torch.sign(n @ (x - beyond))
    while sign == start and (left != 0).any():
        at = int(left.abs().argmax())
        step = max(float(abs(n @ (z - beyond) + 0.001 * start) / left[at].abs()), 1e-4)
        z[at] = (z[at] + step * torch.sign(left[at])).clamp(0, 1)
        left[at] = 0
        sign = torch.sign(n @ (z - beyond))
    z[at] = (torch.sign(n[at]) + 1) / 2 if n[at] != 0 else z[at]
    between = (z != 0) & (z != 1)
    z[between] = 1 - x[between]
    return z


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([0.1, 1.0, 3.0, -1.0]))
def test_the_solver_is_the_published_loop(seed, width, reach):
    x = raster(3, width, seed=seed, dtype=torch.float64)
    n = F.normalize(torch.randn(3, width, generator=generator(seed, 1), dtype=torch.float64), dim=1)
    way = reach * torch.rand(3, 1, generator=generator(seed, 2), dtype=torch.float64) * n
    found, rank = across(x, n, way)
    for row in range(3):
        assert torch.equal(found[row], solver_by_hand(x[row], n[row], x[row] + way[row]))
        moved = (found[row] != x[row]).nonzero()[:, 0]
        by_rank = moved[rank[row][moved].argsort()]
        assert torch.equal(n[row][by_rank].abs(), n[row][moved].abs().sort(descending=True).values)


@pytest.mark.parametrize("batch", [1, 5, 24])
def test_the_first_fooling_prefix_is_found(case, batch):
    model, x, y = (case[0], case[1][:batch], case[2][:batch])
    order = torch.stack([torch.randperm(160, generator=generator(n)) for n in range(batch)])
    counts = torch.tensor([(37 * n) % 161 for n in range(batch)])
    oracle = Oracle(model, x)
    found = first_fooling(oracle, x, y, order, counts, torch.arange(batch))
    for row in range(batch):
        prefixes = [x[row]]
        for bin_ in order[row, : counts[row]].tolist():
            z = prefixes[-1].flatten().clone()
            z[bin_] = 1 - z[bin_]
            prefixes.append(z.reshape(x[row].shape))
        values = excess_of(model, torch.stack(prefixes), y[row].expand(len(prefixes)))[1:]
        fooling = (values > 0).nonzero()[:, 0]
        if len(fooling):
            assert torch.equal(found[row], prefixes[int(fooling[0]) + 1])
        else:
            held = excess_of(model, found[row : row + 1], y[row : row + 1])[0]
            assert held == pytest.approx(float(values.max()) if len(values) else float(held), abs=1e-5)


class Steps(nn.Module):
    """Whole-number logits with the gradients of a linear layer: ties are everywhere."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(32, 3)

    def forward(self, x):
        z = 2 * self.inner(x.flatten(1))
        return z + (z.round() - z).detach()


@EVERY
def test_a_tie_is_no_success(name):
    model, x = Steps(), raster(40, 2, 4, 4, seed=8)
    with torch.no_grad():
        y = model(x).argmax(1)
    found = sw.attack(name, **FEW[name])(model, x, y, within=Events(1), seed=0)
    tied = found.margin == 0
    assert tied.any()
    assert not found.success[tied].any()
    assert found.success[found.margin < 0].all()
    enough = sw.attack(name, **FEW[name])(model, x, y, within=Events(32), seed=0)
    assert (enough.margin[enough.success] < 0).all()
    assert enough.success.sum() > found.success.sum()


def test_a_network_without_gradients_is_given_up():
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    x, y = raster(4, 2, 4, 4), torch.zeros(4, dtype=torch.long)
    found = sw.attack("spikefool")(model, x, y, within=Events(9))
    assert torch.equal(found.x_adv, x)
    assert not found.success.any()
    assert found.cost.forwards.max() < 10


def test_relaxed_draws_give_the_gradient_of_the_mean():
    """Of a linear function E f(X) = f(P): averaged over many draws, the gradient is its coefficients."""
    model, x, y, _ = linear()
    p = 0.2 + 0.6 * torch.rand(16, 2, 4, 4, generator=generator(6), dtype=torch.float64)
    attack = ProbabilisticPGD(draws=3000, temperature=0.05)
    found = attack.slope(Oracle(model, x), p, Goal("margin", y), torch.arange(16), generator(7))
    slope = (model[1].weight[1 - y] - model[1].weight[y]).detach()
    assert (found.flatten(1) - slope).abs().max() < 0.25 * slope.abs().max()
    assert (found.flatten(1) - slope).mean().abs() < 0.01


@EVERY
def test_what_is_no_raster_and_no_set_of_flips_is_refused(name):
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), raster(4, 2, 4, 4), torch.zeros(4, dtype=torch.long)
    attack = sw.attack(name)
    with pytest.raises(InputError, match="flips bins of binary rasters"):
        attack(model, 0.5 * x, y, within=Events(3))
    for within in (sw.Linf(0.1), sw.L0(3)):
        with pytest.raises(InputError, match=r"within sw.Events\(flips\), not in L"):
            attack(model, x, y, within=within)
        assert not attack.fits(model, within)
    assert attack.fits(model, Events(3))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("spikefool", {"rounds": 0}, "rounds must be at least 1"),
        ("spikefool", {"stretch": 0.5}, "stretch must be at least 1"),
        ("spikefool", {"overshoot": -1}, "overshoot must be at least 0"),
        ("binary-pgd", {"radius": 0}, "radius must be positive"),
        ("binary-pgd", {"start": 2}, r"start must lie in \[0, 1\]"),
        ("probabilistic-pgd", {"draws": 0}, "draws must be at least 1"),
        ("probabilistic-pgd", {"temperature": 0}, "temperature must be positive"),
    ],
)
def test_impossible_options_are_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        sw.attack(name, **options)


def test_they_transfer_from_another_model(case):
    model, x, y = case
    source = spiking()
    found = sw.attack("transfer", source=source, attack="spikefool")(model, x, y, within=Events(100))
    own = sw.attack("spikefool")(model, x, y, within=Events(100))
    assert torch.equal(found.x_adv, own.x_adv)  # the source is the same network
