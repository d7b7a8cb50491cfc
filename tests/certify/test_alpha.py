"""alpha-CROWN: never below CROWN, never above the truth, and equal to the linear program where that is its optimum."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from stalwart.bounds.alpha import Ascent, optimise, refine
from stalwart.bounds.methods import margin_rows, prepare, propagate
from stalwart.bounds.propagation import Propagation
from stalwart.bounds.region import Region
from stalwart.core.errors import UsageError
from stalwart.core.random import generator
from stalwart.sets import Linf


def net(*sizes, seed=0, activation=nn.ReLU):
    torch.manual_seed(seed)
    layers = [nn.Flatten()]
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1]).double()


def conv(seed=0):
    torch.manual_seed(seed)
    body = [nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def images(batch=3, side=8):
    return torch.rand(batch, 1, side, side, generator=generator(5), dtype=torch.float64)


def optimised(model, x, within, how):
    graph = prepare(model, x)
    with torch.no_grad():
        return Propagation(graph, graph.fixed(model), Region.around(x, within), "adaptive", refine(how))


MODELS = {
    "relu": lambda: net(64, 20, 20, 3),
    "leaky": lambda: net(64, 20, 20, 3, activation=lambda: nn.LeakyReLU(0.1)),
    "conv": conv,
    "smooth": lambda: net(64, 20, 20, 3, activation=nn.Tanh),
}


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_never_below_crown_and_never_above_samples(name):
    model, x, within = MODELS[name](), images(), Linf(0.1)
    rows = margin_rows(torch.tensor([0, 1, 2]), 3).double()
    known = propagate(model, x, within, "crown")
    crown = optimise(known, rows, Ascent(1))
    better = optimise(known, rows, Ascent(10))
    tighter = optimise(optimised(model, x, within, Ascent(5, 0.5)), rows, Ascent(10))
    assert (better >= crown).all()
    assert (tighter >= crown - 1e-9).all()
    if name != "smooth":
        assert (better > crown + 1e-6).any()
        assert (tighter > better + 1e-6).any()
    for seed in range(20):
        y = model(within.sample(x, generator(seed)))
        values = torch.einsum("brk,bk->br", rows, y)
        assert (values >= tighter - 1e-9).all()
        assert (values >= better - 1e-9).all()


def test_more_iterations_are_never_worse():
    known = propagate(net(64, 20, 20, 3), images(), Linf(0.1), "crown")
    rows = margin_rows(torch.tensor([0, 1, 2]), 3).double()
    found = [optimise(known, rows, Ascent(count)) for count in (1, 2, 5, 20)]
    for few, many in itertools.pairwise(found):
        assert (many >= few).all()


def test_the_optimum_is_that_of_the_triangle_relaxation():
    model, x = net(4, 10, 1, seed=3), torch.full((1, 4), 0.5, dtype=torch.float64)
    within = Linf(0.5)
    known = propagate(model, x, within, "crown")
    rows = torch.ones(1, 1, 1, dtype=torch.float64)
    exact = triangle(model, *(end[0] for end in within.bounds(x)))
    start, found = (float(optimise(known, rows, Ascent(count, 0.5))) for count in (1, 300))
    assert found <= exact + 1e-9
    assert found > start + 1e-3
    assert math.isclose(found, exact, abs_tol=2e-3)


def triangle(model, low, high):
    """Solve the linear program in x and the activations a of one hidden layer."""
    W, c = (part.detach().numpy() for part in (model[1].weight, model[1].bias))
    V, d = (part.detach().numpy() for part in (model[3].weight, model[3].bias))
    low, high = low.numpy(), high.numpy()
    centre, reach = W @ (low + high) / 2 + c, np.abs(W) @ (high - low) / 2
    below, above = centre - reach, centre + reach
    hidden, inputs = W.shape
    A, b, bounds = [], [], [*zip(low, high, strict=True)]
    for j in range(hidden):
        unit = np.eye(hidden)[j]
        if above[j] <= 0:
            bounds.append((0, 0))
            continue
        bounds.append((None, None))
        A.append([*W[j], *-unit])
        b.append(-c[j])
        slope = 1.0 if below[j] >= 0 else above[j] / (above[j] - below[j])
        A.append([*-slope * W[j], *unit])
        b.append(slope * c[j] if below[j] >= 0 else slope * (c[j] - below[j]))
        if below[j] < 0:
            A.append([*np.zeros(inputs), *-unit])
            b.append(0)
    answer = linprog([*np.zeros(inputs), *V[0]], A_ub=np.array(A), b_ub=np.array(b), bounds=bounds)
    return answer.fun + d[0]


def test_gradients_of_the_model_are_left_alone():
    model = net(64, 20, 3)
    known = propagate(model, images(), Linf(0.1), "crown")
    found = optimise(known, margin_rows(torch.tensor([0, 1, 2]), 3).double(), Ascent(4))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert found.shape == (3, 2)


def test_nan_is_not_replaced_by_a_number():
    model = net(64, 20, 3)
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    known = propagate(model, images(), Linf(0.1), "crown")
    rows = margin_rows(torch.tensor([0, 1, 2]), 3).double()
    assert not (optimise(known, rows, Ascent(4)) > -torch.inf).any()


@pytest.mark.parametrize("options", [{"iterations": 0}, {"rate": 0.0}, {"decay": -1.0}])
def test_bad_options(options):
    with pytest.raises(UsageError):
        Ascent(**options)
