"""Losses of certified training against slow twins written out in loops, and what their schedules and boxes promise."""

import copy
import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.core.registry import build
from stalwart.objectives import OBJECTIVES, Moment
from stalwart.objectives.bounds_adapter import CleanPass
from stalwart.objectives.certified import margin_loss, margins_of
from stalwart.objectives.crown_ibp import fused_loss
from stalwart.stochastic import WCAHead

EPS, CLASSES = 0.2, 3
BOUNDS = ["ibp", "crown-ibp", "crown-lbp"]
ATTACKED = ["sabr", "mtl-ibp", "cc-ibp", "exp-ibp", "taps", "staps"]
FULL = Moment(0, 5)
"""At the end of a growth over epochs 1 to 5, the default."""


def make(name, **options):
    return build("objective", OBJECTIVES, name, {"eps": EPS} | options)


# The slow twins: lists and loops.


def layers_of(net):
    return [(m.weight.tolist(), m.bias.tolist()) for m in net if isinstance(m, nn.Linear)]


def affine_interval(weight, bias, lower, upper):
    low, high = [], []
    for row, c in zip(weight, bias, strict=True):
        low.append(c + sum(w * (a if w > 0 else b) for w, a, b in zip(row, lower, upper, strict=True)))
        high.append(c + sum(w * (b if w > 0 else a) for w, a, b in zip(row, lower, upper, strict=True)))
    return low, high


def difference(weight, bias, y, j):
    return [a - b for a, b in zip(weight[y], weight[j], strict=True)], bias[y] - bias[j]


def ends(x, eps):
    return [max(v - eps, 0.0) for v in x], [min(v + eps, 1.0) for v in x]


def ibp_by_hand(net, lower, upper, y):
    (w1, c1), (w2, c2) = layers_of(net)
    low, high = affine_interval(w1, c1, lower, upper)
    low, high = [max(v, 0.0) for v in low], [max(v, 0.0) for v in high]
    found = []
    for j in range(CLASSES):
        if j != y:
            row, c = difference(w2, c2, y, j)
            found.append(affine_interval([row], [c], low, high)[0][0])
    return found


def line_below(low, high):
    """Return slope and intercept of the adaptive lower line of ReLU."""
    return (1.0, 0.0) if low >= 0 or (high > 0 and high >= -low) else (0.0, 0.0)


def line_above(low, high):
    if high <= 0:
        return 0.0, 0.0
    return (1.0, 0.0) if low >= 0 else (high / (high - low), -high * low / (high - low))


def walked_by_hand(net, lower, upper, row, c):
    """Return the CROWN-IBP lower bound of row . hidden + c for a network of one hidden layer."""
    w1, c1 = layers_of(net)[0]
    low, high = affine_interval(w1, c1, lower, upper)
    total, slopes = c, [0.0] * len(lower)
    for i, a in enumerate(row):
        slope, intercept = line_below(low[i], high[i]) if a >= 0 else line_above(low[i], high[i])
        total += a * (intercept + slope * c1[i])
        slopes = [s + a * slope * w for s, w in zip(slopes, w1[i], strict=True)]
    return total + sum(s * (p if s > 0 else q) for s, p, q in zip(slopes, lower, upper, strict=True))


def crown_ibp_by_hand(net, lower, upper, y):
    w2, c2 = layers_of(net)[1]
    return [walked_by_hand(net, lower, upper, *difference(w2, c2, y, j)) for j in range(CLASSES) if j != y]


def cross_entropy(margins):
    return math.log(1 + sum(math.exp(-m) for m in margins))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def clean_by_hand(net, x, y):
    outputs = net(x).tolist()
    margins = ([z[t] - z[j] for j in range(CLASSES) if j != t] for z, t in zip(outputs, y.tolist(), strict=True))
    return mean(map(cross_entropy, margins))


def rows_of(x, y, eps):
    for point, label in zip(x.tolist(), y.tolist(), strict=True):
        yield *ends(point, eps), label


def test_margins_and_their_loss():
    logits = torch.tensor([[1.0, -0.5, 0.2], [0.3, 2.0, -1.0]])
    y = torch.tensor([2, 0])
    assert margins_of(logits, y).tolist() == [pytest.approx([-0.8, 0.7]), pytest.approx([-1.7, 1.3])]
    torch.testing.assert_close(margin_loss(margins_of(logits, y)).mean(), F.cross_entropy(logits, y))
    assert float(margin_loss(torch.tensor([[100.0, 200.0]]))) == pytest.approx(math.exp(-100)), "no rounding to 0"


@pytest.mark.parametrize(
    ("kappa", "time", "weight", "share"),
    [((1, 0.5), 5.0, 0.5, 1.0), ((1, 0), 3.0, 0.5, 0.5), ((0, 0), 2.0, 0.0, 0.25), ((1, 0.5), 2.0, 0.875, 0.25)],
)
def test_ibp(small, points, kappa, time, weight, share):
    x, y = points
    objective = make("ibp", kappa_start=kappa[0], kappa_end=kappa[1])
    loss, logits = objective.loss(small, x, y, Moment(0, int(time)))
    robust = mean(cross_entropy(ibp_by_hand(small, *row)) for row in rows_of(x, y, share * EPS))
    assert float(loss.detach()) == pytest.approx(weight * clean_by_hand(small, x, y) + (1 - weight) * robust, abs=1e-9)
    assert torch.equal(logits, small(x))


@pytest.mark.parametrize("name", [*BOUNDS, *ATTACKED])
@pytest.mark.parametrize("time", [0.0, 0.5, 1.0])
def test_clean_epochs_are_clean(deep, images, name, time):
    loss, logits = make(name).loss(deep.eval(), *images, Moment(0, int(time), time % 1))
    assert torch.equal(logits, deep(images[0]))
    assert torch.equal(loss, F.cross_entropy(logits, images[1]))


@pytest.mark.parametrize(("beta_end", "time"), [(0, 5), (1, 5), (0, 3), (0.5, 2)])
def test_crown_ibp(small, points, beta_end, time):
    x, y = points
    objective = make("crown-ibp", kappa_start=0, kappa_end=0, beta_end=beta_end)
    share = (time - 1) / 4
    beta = 1 - (1 - beta_end) * share
    expected = []
    for row in rows_of(x, y, share * EPS):
        pairs = zip(ibp_by_hand(small, *row), crown_ibp_by_hand(small, *row), strict=True)
        expected.append(cross_entropy([(1 - beta) * a + beta * b for a, b in pairs]))
    loss, _ = objective.loss(small, x, y, Moment(0, time))
    assert float(loss.detach()) == pytest.approx(mean(expected), abs=1e-9)


def test_without_weight_the_walk_is_left_out(small, points, monkeypatch):
    walked = []
    original = CleanPass.box

    def box(self, *arguments):
        found = original(self, *arguments)
        rows = found.rows
        found.rows = lambda *a: (walked.append(a[1:]), rows(*a))[1]
        return found

    monkeypatch.setattr(CleanPass, "box", box)
    make("crown-ibp").loss(small, *points, Moment(0, 5))
    assert walked == [("ibp",)]
    make("crown-ibp").loss(small, *points, Moment(0, 4))
    assert walked[1:] == [("ibp",), ("crown-ibp",)]


def fused_by_hand(net, lower, upper, y, beta):
    """Return the log of the mixed bound of Σ exp(z_j - z_y), every chord written out."""
    w2, c2 = layers_of(net)[1]
    negated = copy.deepcopy(net)
    with torch.no_grad():
        negated[2].weight.neg_(), negated[2].bias.neg_()
    tops = [-m for m in ibp_by_hand(net, lower, upper, y)]
    bottoms = ibp_by_hand(negated, lower, upper, y)
    row, c, chords = [0.0] * len(w2[0]), 0.0, 0.0
    for j, low, high in zip([k for k in range(CLASSES) if k != y], bottoms, tops, strict=True):
        slope = (math.exp(high) - math.exp(low)) / (high - low)
        chords += math.exp(high) - slope * high
        each, constant = difference(w2, c2, y, j)
        row = [r + slope * e for r, e in zip(row, each, strict=True)]
        c += slope * constant
    walked = chords - walked_by_hand(net, lower, upper, row, c)
    return math.log(1 + (1 - beta) * sum(math.exp(t) for t in tops) + beta * walked)


@pytest.mark.parametrize(("beta_end", "time"), [(1, 5), (0, 3)])
def test_loss_fusion(small, points, beta_end, time):
    x, y = points
    objective = make("crown-ibp", kappa_start=0, kappa_end=0, beta_end=beta_end, fusion=True)
    share = (time - 1) / 4
    beta = 1 - (1 - beta_end) * share
    expected = mean(fused_by_hand(small, *row, beta) for row in rows_of(x, y, share * EPS))
    assert float(objective.loss(small, x, y, Moment(0, time))[0].detach()) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_the_fused_loss_bounds_the_cross_entropy_at_every_point(small, points, scale):
    x, y = points
    with torch.no_grad():
        small[2].weight.mul_(scale)
    clean = CleanPass(small, x)
    lower, upper = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)
    box = clean.box(lower, upper)
    bound = fused_loss(box, y, box.margins(y), 1.0, "crown-ibp")
    assert torch.isfinite(bound).all()
    for k in range(200):
        z = lower + (upper - lower) * torch.rand(x.shape, generator=generator(k), dtype=x.dtype)
        assert (F.cross_entropy(small(z), y, reduction="none") <= bound + 1e-9 * scale).all()
    alone = clean.box(x, x)
    torch.testing.assert_close(
        fused_loss(alone, y, alone.margins(y), 1.0, "crown-ibp"), F.cross_entropy(small(x), y, reduction="none")
    )


def test_crown_lbp_is_crown_ibp_where_one_layer_lies_before_the_activations(small, points):
    """Forward linear bounds of a first linear layer are its intervals."""
    options = {"kappa_start": 0, "kappa_end": 0, "beta_end": 1}
    one, other = (make(name, **options).loss(small, *points, FULL)[0] for name in ("crown-ibp", "crown-lbp"))
    torch.testing.assert_close(one, other)


def test_crown_lbp_differs_on_a_deeper_network_and_is_sound(points):
    x, y = points
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, CLASSES)).double()
    lower, upper = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)
    box = CleanPass(net, x).box(lower, upper)
    bounds = {method: box.margins(y, method) for method in ("ibp", "crown-ibp", "crown-lbp")}
    assert not torch.allclose(bounds["crown-ibp"], bounds["crown-lbp"])
    for k in range(200):
        z = lower + (upper - lower) * torch.rand(x.shape, generator=generator(k), dtype=x.dtype)
        for bound in bounds.values():
            assert (margins_of(net(z), y) >= bound - 1e-9).all()


# Attacked objectives: the adversarial point is taken from the objective itself, the rest is written out.


def attacked(objective, net, x, y):
    return objective.attack(net, x, y, EPS, FULL)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_expressive_losses(small, points, alpha):
    x, y = points
    found = {name: make(name, alpha=alpha, steps=3) for name in ("mtl-ibp", "cc-ibp", "exp-ibp")}
    x_adv = attacked(found["mtl-ibp"], small, x, y)
    bounds = [ibp_by_hand(small, *row) for row in rows_of(x, y, EPS)]
    adversarial = margins_of(small(x_adv), y).tolist()
    pairs = list(zip(adversarial, bounds, strict=True))
    expected = {
        "mtl-ibp": mean((1 - alpha) * cross_entropy(a) + alpha * cross_entropy(b) for a, b in pairs),
        "cc-ibp": mean(
            cross_entropy([(1 - alpha) * p + alpha * q for p, q in zip(a, b, strict=True)]) for a, b in pairs
        ),
        "exp-ibp": mean(cross_entropy(a) ** (1 - alpha) * cross_entropy(b) ** alpha for a, b in pairs),
    }
    for name, objective in found.items():
        loss, logits = objective.loss(small, x, y, FULL)
        assert float(loss.detach()) == pytest.approx(expected[name], abs=1e-9), name
        assert torch.equal(logits, small(x))


@pytest.mark.parametrize("name", ["mtl-ibp", "cc-ibp", "exp-ibp"])
def test_the_ends_of_expressive_losses(small, points, name):
    x, y = points
    whole = make("ibp", kappa_start=0, kappa_end=0).loss(small, x, y, FULL)[0]
    torch.testing.assert_close(make(name, alpha=1).loss(small, x, y, FULL)[0], whole)
    objective = make(name, alpha=0)
    expected = F.cross_entropy(small(attacked(objective, small, x, y)), y)
    torch.testing.assert_close(objective.loss(small, x, y, FULL)[0], expected)


def test_losses_of_nothing_left_to_learn_have_a_finite_gradient(small, points):
    x, y = points
    with torch.no_grad():
        small[0].weight.zero_(), small[2].weight.zero_(), small[2].bias.copy_(torch.tensor([1e4, 0.0, 0.0]))
    loss, _ = make("exp-ibp").loss(small, x, torch.zeros_like(y), FULL)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in small.parameters())


def test_sabr(small, points):
    x, y = points
    objective = make("sabr", subset=0.3, steps=4)
    centre = attacked(objective, small, x, y).clamp(x - 0.7 * EPS, x + 0.7 * EPS)
    expected = mean(cross_entropy(ibp_by_hand(small, *row)) for row in rows_of(centre, y, 0.3 * EPS))
    assert float(objective.loss(small, x, y, FULL)[0].detach()) == pytest.approx(expected, abs=1e-9)
    whole = make("ibp", kappa_start=0, kappa_end=0).loss(small, x, y, FULL)[0]
    torch.testing.assert_close(make("sabr", subset=1).loss(small, x, y, FULL)[0], whole)


@hypothesis.settings(max_examples=30)
@hypothesis.given(
    subset=st.floats(0.01, 1), eps=st.sampled_from([0.01, 0.1, 0.4]), seed=st.integers(0, 99), corner=st.booleans()
)
def test_the_small_box_lies_inside_the_eps_box(subset, eps, seed, corner):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    x = torch.rand(6, 4, generator=generator(seed))
    x = x.round() if corner else x
    y = torch.arange(6) % CLASSES
    lower, upper = make("sabr", subset=subset, steps=2).region(net, x, y, eps, Moment(seed))
    assert (lower >= (x - eps).clamp_min(0)).all()
    assert (upper <= (x + eps).clamp_max(1)).all()
    assert (lower <= upper).all()
    width = upper - lower
    assert (width <= 2 * subset * eps + 1e-6).all()
    assert (width >= subset * eps - 1e-6).all(), "at most half of it is cut off at the border of [0, 1]"


@pytest.mark.parametrize("scale", [0.5, 2.1])
def test_attacks_reach_their_own_radius(small, points, scale):
    x, y = points
    x = 0.3 + 0.4 * x
    change = make("mtl-ibp", attack_scale=scale).attack(small, x, y, 0.1, FULL) - x
    assert float(change.abs().max()) == pytest.approx(scale * 0.1)
    objective = make("mtl-ibp", steps=5)
    assert F.cross_entropy(small(attacked(objective, small, x, y)), y) > F.cross_entropy(small(x), y)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ibp", {"eps": 0}, "eps"),
        ("ibp", {"kappa_end": 1.5}, "end"),
        ("ibp", {"clean_epochs": -1}, "begin"),
        ("ibp", {"ramp_epochs": -1}, "over"),
        ("ibp", {"regularise": -1}, "regularise"),
        ("ibp", {"tau": 0}, "tau"),
        ("ibp", {"l1": -1}, "l1"),
        ("ibp", {"growth": "fast"}, "growth"),
        ("ibp", {"kapa_end": 1}, "Did you mean 'kappa_end'"),
        ("crown-ibp", {"beta_start": -1}, "start"),
        ("sabr", {"subset": 0}, "subset"),
        ("sabr", {"steps": 0}, "steps"),
        ("mtl-ibp", {"alpha": 1.1}, "alpha"),
        ("mtl-ibp", {"attack_scale": 0}, "attack_scale"),
        ("mtl-ibp", {"relative_step": 0}, "relative_step"),
        ("taps", {"split": 0}, "split"),
        ("taps", {"steps": 3}, "no option 'steps'"),
        ("taps", {"latent_steps": 0}, "latent_steps"),
        ("taps", {"expansion": 0}, "expansion"),
        ("taps", {"reach": 0.6}, "reach"),
        ("awp", {"base": "ibp"}, "cannot stand inside another"),
        ("wca", {"base": "awp"}, "cannot stand inside another"),
    ],
)
def test_impossible_options_are_refused(name, options, message):
    values = options if name in ("awp", "wca") else {"eps": EPS} | options
    with pytest.raises(UsageError, match=message):
        build("objective", OBJECTIVES, name, values)


def test_randomised_models_are_refused(images):
    model = nn.Sequential(nn.Flatten(), WCAHead(36, CLASSES))
    with pytest.raises(InputError, match="without noise layers"):
        make("ibp").loss(model, *images, FULL)
