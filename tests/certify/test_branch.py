"""Branch and bound against the enumeration of all activation patterns, each a linear program."""

import itertools
import time

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from stalwart.bounds.alpha import Ascent
from stalwart.certify.boxes import Boxes, Halving
from stalwart.certify.branch import Branching, Search
from stalwart.certify.domains import Bounder
from stalwart.certify.exact import settle
from stalwart.certify.problem import Network, Problem, optimised, proven
from stalwart.core.random import generator
from stalwart.interchange import Case, Conjunction


def net(seed, *sizes):
    torch.manual_seed(seed)
    layers = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def enumerated(model, low, high):
    """Return the smallest output over a box: one linear program for each activation pattern that some input has."""
    layers = [(one.weight.detach().numpy(), one.bias.detach().numpy()) for one in model if isinstance(one, nn.Linear)]
    box = list(zip(low, high, strict=True))

    def solve(goal, A, b):
        found = linprog(goal, A_ub=np.array(A) if A else None, b_ub=np.array(b) if b else None, bounds=box)
        return found.fun if found.status == 0 else None

    def below(depth, M, m, A, b):
        """Smallest output where the hidden values before layer ``depth`` are M x + m, under the signs chosen so far."""
        W, c = layers[depth]
        M, m = W @ M, W @ m + c
        if depth == len(layers) - 1:
            return solve(M[0], A, b) + m[0]
        best = np.inf
        stack = [(0, [], A, b)]
        while stack:
            at, signs, left, right = stack.pop()
            if at == len(M):
                on = np.array(signs)
                best = min(best, below(depth + 1, M * on[:, None], m * on, left, right))
                continue
            for sign in (0, 1):
                row = (1 - 2 * sign) * M[at]
                more, ends = [*left, row], [*right, -(1 - 2 * sign) * m[at]]
                if solve(np.zeros(len(low)), more, ends) is not None:
                    stack.append((at + 1, [*signs, sign], more, ends))
        return best

    return below(0, np.eye(len(low)), np.zeros(len(low)), [], [])


def problem(model, low, high, rows, limits, seconds=60.0, judged=True):
    """Ask for an input with C y <= d, one unsafe set."""
    case = Case(
        torch.as_tensor(low, dtype=torch.float64),
        torch.as_tensor(high, dtype=torch.float64),
        (Conjunction(torch.as_tensor(rows, dtype=torch.float64), torch.as_tensor(limits, dtype=torch.float64)),),
    )

    def judge(x):
        if not judged:
            return None
        bad = case.unsafe[0].met_by(model(x.double()).detach()) & case.contains(x)
        return int(bad.nonzero()[0]) if bad.any() else None

    return Problem.of(Network.of(model, (len(low),)), case, judge, time.monotonic() + seconds)


def by_neurons(asked, how=None):
    search = Search(asked, asked.known(optimised(1)), how or Branching(batch=16))
    root = search.exact.improve(search.exact.root(asked.C, asked.d), Ascent(10, 0.5))
    return search.run(root.take((~proven(root.bound)).nonzero().flatten()))


def by_inputs(asked):
    return Boxes(asked, Halving(batch=64)).run()


@pytest.fixture(scope="module")
def minima():
    """Three networks with the smallest output over [-1, 1] x [-1, 1]."""
    return [(model, enumerated(model, [-1, -1], [1, 1])) for model in (net(seed, 2, 8, 8, 1) for seed in range(3))]


@pytest.mark.parametrize("search", [by_neurons, by_inputs])
@pytest.mark.parametrize("number", range(3))
def test_the_verdict_turns_where_the_enumeration_says(minima, search, number):
    model, smallest = minima[number]
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 101, dtype=torch.float64)] * 2)
    assert smallest <= float(model(grid).detach().min()) <= smallest + 0.02, "the oracle itself"
    for gap in (0.1, 1e-3):
        below = search(problem(model, [-1, -1], [1, 1], [[1.0]], [smallest - gap]))
        above = search(problem(model, [-1, -1], [1, 1], [[1.0]], [smallest + gap]))
        assert below.status == "verified"
        assert above.status == "falsified"


@pytest.mark.parametrize("number", range(3))
def test_nothing_is_proven_without_the_judge(minima, number):
    model, smallest = minima[number]
    found = by_neurons(problem(model, [-1, -1], [1, 1], [[1.0]], [smallest + 1e-3], judged=False))
    assert found.status == "unknown"
    assert "cannot be split" in found.reason
    assert found.bound <= 0


@pytest.mark.parametrize("search", [by_neurons, by_inputs])
def test_rows_of_a_conjunction_hold_together(search):
    """|x| <= t and |1 - x| <= t has a solution exactly if t >= 1/2, although each row alone has one for all t >= 0."""
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
        model[0].bias[:] = torch.tensor([0.0, 0.0, -1.0, 1.0])
        model[2].weight[:] = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
        model[2].bias.zero_()
    rows = [[1.0, 0.0], [0.0, 1.0]]
    assert search(problem(model, [-2.0], [3.0], rows, [0.49, 0.49])).status == "verified"
    assert search(problem(model, [-2.0], [3.0], rows, [0.51, 0.51])).status == "falsified"


def test_bounds_of_domains_hold_for_inputs_inside_them():
    model = net(7, 3, 10, 10, 2)
    asked = problem(model, [-1.0] * 3, [1.0] * 3, [[1.0, -1.0], [0.5, 1.0]], [0.1, -0.2])
    bounder = Bounder(asked.known(optimised(1)))
    domains = bounder.root(asked.C, asked.d)
    source = generator(3)
    x = 2 * torch.rand(20000, 3, generator=source, dtype=torch.float64) - 1
    values = model(x) @ asked.C[0].T - asked.d[0]
    seen = 0
    for _ in range(4):
        place = torch.randint(bounder.count, (len(domains),), generator=source)
        domains = bounder.improve(domains.split(place), Ascent(5, 0.3), 0.5)
        bounds = bounder.bound(domains)
        lower, upper = bounder.ends(domains)
        for number in range(len(domains)):
            inside = torch.ones(len(x), dtype=torch.bool)
            hidden = x
            for layer, linear in zip(bounder.layers, (model[0], model[2]), strict=True):
                z = linear(hidden)
                hidden = z.relu()
                mine = z[:, layer.index]
                inside &= (mine >= lower[number, layer.begin : layer.end]).all(1)
                inside &= (mine <= upper[number, layer.begin : layer.end]).all(1)
            seen += int(inside.sum())
            if inside.any():
                assert (values[inside].amin(0) >= bounds[number] - 1e-9).all()
    assert seen > 1000


def test_a_split_never_loosens_the_bound_that_is_kept():
    model = net(2, 3, 12, 12, 1)
    asked = problem(model, [-1.0] * 3, [1.0] * 3, [[1.0]], [-5.0])
    bounder = Bounder(asked.known(optimised(1)))
    root = bounder.improve(bounder.root(asked.C, asked.d), Ascent(10, 0.5))
    for place in range(bounder.count):
        children = bounder.improve(root.split(torch.tensor([place])), Ascent(3, 0.3))
        assert (children.bound >= root.bound).all()


def test_a_program_settles_domains_without_open_neurons(minima):
    model, smallest = minima[0]
    asked = problem(model, [-1, -1], [1, 1], [[1.0]], [smallest - 1e-4])
    bounder = Bounder(asked.known(optimised(1)))
    whole = bounder.root(asked.C, asked.d)
    source, proofs = generator(0), 0
    for _ in range(10):
        # Signs as some input has them, and signs that no input has.
        domain = whole
        for place in range(bounder.count):
            keep = torch.randint(2, (1,), generator=source)
            domain = domain.split(torch.tensor([place])).take(keep)
        bound, point = settle(bounder, domain)
        assert bound > 0 or point is not None or bound == float(domain.bound)
        proofs += bound > 0
    assert proofs >= 8


def test_time_and_memory_are_limited():
    model = net(1, 30, 60, 60, 60, 1)
    asked = problem(model, [-3.0] * 30, [3.0] * 30, [[1.0]], [-1e3], seconds=1.5)
    begun = time.monotonic()
    found = by_neurons(problem(model, [-3.0] * 30, [3.0] * 30, [[1.0]], [-2.0], seconds=1.5, judged=False))
    assert found.status == "timeout"
    assert time.monotonic() - begun < 3.5
    full = by_neurons(
        problem(model, [-3.0] * 30, [3.0] * 30, [[1.0]], [-2.0], judged=False), Branching(batch=8, memory=10000)
    )
    assert full.status == "unknown"
    assert "bytes" in full.reason
    assert asked.left() <= 1.5
