"""AutoAttack: exact on linear models, in any norm and with any number of classes; survivors, costs, tally, determinism."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.attacks.apgd_l1 import climb_l1, sparse_direction
from stalwart.attacks.autoattack import MEMBERS, member
from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator

RADII = torch.tensor([0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0], dtype=torch.float64)
WIDE = {"low": -100.0, "high": 100.0}
BALLS = [(sw.Linf, 1), (sw.L2, 2), (sw.L1, math.inf)]


@pytest.fixture
def quick(monkeypatch):
    """Make the members short."""

    def shortened(name, version, norm):
        registered, options = member(name, version, norm)
        short = {"queries": 30} if registered == "square" else {"steps": 12}
        if options.get("restarts", 1) > 1:
            short["restarts"] = 2
        return registered, options | short

    monkeypatch.setattr("stalwart.attacks.autoattack.member", shortened)


@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_linear_models_are_broken_exactly_where_the_closed_form_says(quick, linear_case, ball, classes):
    kind, dual = ball
    sizes = RADII * (5 if kind is sw.L1 else 1)
    model, x, y, worst = linear_case(classes, 1)
    y = y.clone()
    y[0] = (y[0] + 1) % classes
    result = sw.attack("autoattack")(model, x, y, within=kind(sizes, **WIDE))
    logits = model(x).detach()
    assert torch.equal(result.success[1:], (worst(sizes, dual) <= 0)[1:])
    assert result.success[0], "misclassified to begin with"
    assert torch.equal(result.x_adv[0], x[0])
    assert result.cost.backwards[0] == 0
    assert result.broken_by[0] == -1
    assert torch.equal(result.broken_by == -2, ~result.success)
    assert 1 < result.success.sum() < 8
    reached = model(result.x_adv).detach()
    own = reached.gather(1, y[:, None])[:, 0]
    assert torch.allclose(result.margin, own - reached.scatter(1, y[:, None], -torch.inf).amax(1))
    assert logits.shape == (8, classes)
    assert within_ball(kind, result.x_adv - x, sizes)


def within_ball(kind, change, sizes):
    order = {sw.Linf: math.inf, sw.L2: 2, sw.L1: 1}[kind]
    return bool((change.flatten(1).norm(p=order, dim=1) <= sizes + 1e-9 * (1 + sizes)).all())


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
@pytest.mark.parametrize("kind", [sw.Linf, sw.L2, sw.L1])
def test_versions_on_a_network(quick, digits, version, kind):
    model, x, y = digits
    most = {sw.Linf: 0.15, sw.L2: 0.8, sw.L1: 3.0}[kind]
    within = kind(torch.linspace(0, most, 60))
    noted = []
    attack = sw.attack("autoattack", version=version)
    result = attack(model, x, y, within=within, seed=3, after=lambda name, left: noted.append((name, left)))
    again = attack(model, x, y, within=within, seed=3)
    assert torch.equal(result.x_adv, again.x_adv)
    assert list(result.left.items()) == noted
    assert list(result.left) == ["clean", *MEMBERS[version]]
    assert list(result.left.values()) == sorted(result.left.values(), reverse=True)
    assert result.left["clean"] == int((model(x).argmax(1) == y).sum())
    assert result.left[MEMBERS[version][-1]] == int((~result.success).sum())
    assert within.contains(x, result.x_adv).all()
    assert ((result.x_adv >= 0) & (result.x_adv <= 1)).all()
    assert torch.equal(model(result.x_adv).argmax(1) != y, result.success)
    for number, (before, name) in enumerate(zip(result.left, MEMBERS[version], strict=False)):
        assert int((result.broken_by == number).sum()) == result.left[before] - result.left[name]
    if kind is not sw.L1:
        pgd = sw.attack("pgd", steps=40)(model, x, y, within=within)
        assert result.success.sum() >= pgd.success.sum() > 5


def test_costs_are_counted_and_the_broken_pay_no_more(quick, digits, counting):
    model, x, y = digits
    counter = counting(model)
    result = sw.attack("autoattack")(counter, x, y, within=sw.Linf(torch.linspace(0, 0.3, 60)))
    assert int(result.cost.forwards.sum()) == sum(counter.forwards)
    assert int(result.cost.backwards.sum()) == sum(counter.backwards)
    held = ~result.success
    first = result.broken_by == 0
    assert (result.cost.backwards[first] <= 12).all()
    assert (result.cost.backwards[held] == 12 + 3 * 12 + 3 * 12).all()


def test_published_settings():
    within = sw.Linf(0.1)
    standard = sw.attack("autoattack").members(within)
    assert [(m.steps, m.restarts) for m in list(standard.values())[:3]] == [(100, 1)] * 3
    assert (standard["apgd-t"].targets, standard["fab-t"].targets, standard["square"].queries) == (9, 9, 5000)
    # Published: p is halved at fixed queries, so that query 2500 has p = 0.8 / 64.
    assert standard["square"].share(2500) == 0.8 / 64
    l1 = sw.attack("autoattack").members(sw.L1(12))
    assert (l1["apgd-ce"].restarts, l1["apgd-t"].targets, l1["apgd-ce"].larger_radii) == (5, 5, True)
    plus = sw.attack("autoattack", version="plus").members(within)
    assert [plus[name].restarts for name in ("apgd-ce", "apgd-dlr", "fab", "apgd-t", "fab-t")] == [5, 5, 5, 1, 1]
    rand = sw.attack("autoattack", version="rand").members(within)
    assert {m.eot for m in rand.values()} == {20}


def test_a_randomised_model_keeps_its_samples_to_the_end(quick, noisy):
    model, x, y = noisy
    result = sw.attack("autoattack", version="rand", eot=2)(model, x, y, within=sw.Linf(0.3))
    assert (result.cost.backwards == result.cost.backwards[0]).all()
    assert result.left["apgd-dlr"] == int((~result.success).sum())


def test_it_runs_inside_a_transfer(quick, digits):
    model, x, y = digits
    result = sw.attack("transfer", source=model, attack="autoattack")(model, x[:10], y[:10], within=sw.Linf(0.3))
    assert result.success.float().mean() > 0.5


def test_bad_calls(digits):
    model, x, y = digits
    with pytest.raises(InputError, match="autoattack works in linf, l2 and l1 balls"):
        sw.attack("autoattack")(model, x, y, within=sw.L0(2))
    with pytest.raises(UsageError, match="version"):
        sw.attack("autoattack", version="strong")
    with pytest.raises(UsageError, match="unknown member 'fab'; 'standard' has"):
        sw.attack("autoattack", only=("fab",))


def test_sparse_steps_by_hand():
    gradient = torch.tensor([[3.0, -4.0, 1.0, 0.5, -2.0], [1.0, 1.0, -5.0, 0.0, 0.0]])
    # 40 % of five coordinates are the two largest; a share below one coordinate is one.
    assert sparse_direction(gradient, torch.tensor([0.4, 0.1])).tolist() == [[0.5, -0.5, 0, 0, 0], [0, 0, -1, 0, 0]]


def l1_twin(model, x, y, start, eps, steps):
    """Return the iterates z_0 ... z_{steps-1} of APGD for l1 on one input, algorithm 1 of Croce and Hein (2021)."""
    n, every = x.numel(), max(int(0.04 * steps), 1)
    z, eta, share, changed = start, eps, 0.2, n
    best, record, best_gradient, seen = None, -math.inf, None, []
    for k in range(steps):
        seen.append(z)
        leaf = z.clone().requires_grad_()
        loss = nn.functional.cross_entropy(model(leaf), y)
        (gradient,) = torch.autograd.grad(loss, leaf)
        if float(loss.detach()) > record:
            best, record, best_gradient = z, float(loss.detach()), gradient
        if k > 0 and k % every == 0:
            now = int(((best - x).abs() > 1e-6 * eps).sum())
            share = now / n / 1.5
            if now / changed < 0.95:
                eta, z, gradient = eps, best, best_gradient
            else:
                eta = max(eta / 1.5, eps / 10)
            changed = now
        count = n - int((1 - share) * n) if share < 1 else n
        chosen = gradient.flatten().abs().sort(descending=True).indices[: max(count, 1)]
        step = torch.zeros(n, dtype=x.dtype)
        step[chosen] = gradient.flatten()[chosen].sign() / len(chosen)
        z = sw.L1(eps).project(x, z + eta * step.view(x.shape))
    return seen


def test_l1_steps_agree_with_the_slow_twin(digits):
    model, x, y = digits
    model, x, y = copy.deepcopy(model).double(), x[:4].double(), y[:4]
    recorder = Recording(model)
    within, steps = sw.L1(1.0), 60
    oracle = Oracle(recorder, x, is_target=False)
    z, broken = climb_l1(oracle, Goal("ce", y), x, within, steps, torch.arange(4), generator(2), larger_radii=False)
    start = within.project(x, x + torch.randn(x.shape, generator=generator(2), dtype=x.dtype))
    assert not broken.any()
    for i in range(4):
        own = slice(i, i + 1)
        for k, wanted in enumerate(l1_twin(model, x[own], y[own], start[own], 1.0, steps)):
            assert torch.allclose(recorder.seen[k][own], wanted, atol=1e-9), (i, k)
    assert within.contains(x, z).all()


class Recording(nn.Module):
    """Keeps the inputs whose gradient is wanted."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen = inner, []

    def forward(self, x):
        if x.requires_grad:
            self.seen.append(x.detach().clone())
        return self.inner(x)


def test_larger_radii_end_in_the_ball_and_help_or_do_no_harm(digits):
    model, x, y = digits
    for size in (0.8, 1.5):
        within, broken = sw.L1(size), {False: 0, True: 0}
        for seed, wide in itertools.product(range(4), (False, True)):
            found = sw.attack("apgd", steps=60, larger_radii=wide)(model, x, y, within=within, seed=seed)
            assert within.contains(x, found.x_adv).all()
            assert (found.cost.backwards <= 60).all()
            broken[wide] += int(found.success.sum())
        assert broken[True] >= broken[False] - 2 * 4, "two images a run at most"
