"""Rigorous bounds never exceed the exact value; plain ones do, which is why there are rigorous ones."""

from fractions import Fraction

import pytest
import torch
from tests.bounds.nets import networks
from torch import nn

import stalwart as sw
from stalwart.bounds import METHODS, bound
from stalwart.core.errors import UsageError
from stalwart.core.random import generator

COVERED = (
    *(
        "conv",
        "conv-groups",
        "batch-norm",
        "residual",
        "max-pool",
        "avg-pool",
        "leaky_relu",
        "prelu",
        "scale",
        "slices",
        "pad",
    ),
    "param-ramp",
)


def exact(layers, x):
    """Return the network's exact outputs at x by rational arithmetic."""
    values = [Fraction(v) for v in x.tolist()]
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            values = [max(v, Fraction(0)) for v in values]
        else:
            rows, offsets = layer.weight.tolist(), layer.bias.tolist()
            values = [
                sum((Fraction(w) * v for w, v in zip(row, values, strict=True)), Fraction(c))
                for row, c in zip(rows, offsets, strict=True)
            ]
    return values


def redraw(model, seed):
    source = generator(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=source))


def test_a_rigorous_bound_is_never_above_the_exact_value():
    """A radius of 0: the bound of a point is its value, and rounding is all there is. 1,000 outputs."""
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))
    plain_above, count = 0, 0
    for seed in range(10):
        redraw(model, seed)
        x = torch.rand(20, 12, generator=generator(seed, "x"))
        values = [exact(model, row) for row in x]
        count += sum(map(len, values))
        plain = bound(model, x, sw.Linf(0.0), "crown")
        plain_above += sum(
            Fraction(float(plain.lower[k, j])) > value for k, row in enumerate(values) for j, value in enumerate(row)
        )
        for method in ("ibp", "crown-ibp", "crown"):
            sure = bound(model, x, sw.Linf(0.0), method, rigor="rigorous")
            for k, row in enumerate(values):
                for j, value in enumerate(row):
                    assert Fraction(float(sure.lower[k, j])) <= value <= Fraction(float(sure.upper[k, j]))
            assert (sure.upper - sure.lower).max() < 1e-8, "room for rounding is small in float64"
    assert count == 1000
    assert plain_above > 100, "if plain bounds were sound by luck, this test would prove nothing"


def test_a_linear_network_on_a_box_is_bounded_below_the_exact_minimum():
    """The minimum of a linear function over a box lies at a corner that can be named."""
    model = nn.Sequential(nn.Linear(16, 4))
    for seed in range(30):
        redraw(model, seed)
        x = torch.rand(3, 16, generator=generator(seed, "x"))
        found = bound(model, x, sw.Linf(0.1), "crown", rigor="rigorous")
        eps = Fraction(0.1)
        for k, row in enumerate(x.tolist()):
            ends = [(max(Fraction(v) - eps, Fraction(0)), min(Fraction(v) + eps, Fraction(1))) for v in row]
            for j, (weights, offset) in enumerate(zip(model[0].weight.tolist(), model[0].bias.tolist(), strict=True)):
                lowest = sum(
                    (Fraction(w) * (low if w > 0 else high) for w, (low, high) in zip(weights, ends, strict=True)),
                    Fraction(offset),
                )
                assert Fraction(float(found.lower[k, j])) <= lowest
                assert float(lowest) - float(found.lower[k, j]) < 1e-9


@pytest.mark.parametrize(
    "name",
    [
        "conv",
        "conv-groups",
        "batch-norm",
        "residual",
        "max-pool",
        "avg-pool",
        "leaky_relu",
        "prelu",
        "scale",
        "slices",
        "pad",
        "param-ramp",
    ],
)
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_rigorous_bounds_are_barely_looser(name, method):
    model, shape = networks()[name]
    x = torch.rand(2, *shape, generator=generator(3), dtype=torch.float64)
    with torch.no_grad():
        plain = bound(model, x, sw.Linf(0.1), method, rigor="float64")
        sure = bound(model, x, sw.Linf(0.1), method, rigor="rigorous")
    assert (sure.lower < plain.lower).all()
    assert (sure.upper > plain.upper).all()
    assert torch.allclose(sure.lower, plain.lower, atol=1e-8)


def test_what_is_not_covered_is_refused():
    x = torch.rand(2, 4)
    with pytest.raises(UsageError, match="not 'tanh' in module '1'"):
        bound(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), x, sw.Linf(0.1), "crown", rigor="rigorous")
    with pytest.raises(UsageError, match="other norms"):
        bound(nn.Linear(4, 3), x, sw.L2(0.1), rigor="rigorous")
    assert "crown" in METHODS


class Computes(nn.Module):
    """A linear layer and a constant made of a parameter."""

    def __init__(self, constant):
        super().__init__()
        self.linear, self.b = nn.Linear(4, 3), nn.Parameter(torch.rand(3, generator=generator(0)))
        self.constant = constant

    def forward(self, x):
        return self.linear(x) + self.constant(self.b)


@pytest.mark.parametrize(
    ("constant", "op"),
    [
        (lambda b: b / 3, "div"),
        (lambda b: b + 1e-9, "add"),
        (lambda b: 1 / 3 - b, "rsub"),
        (lambda b: b * b * b, "mul"),
        (lambda b: b.exp(), "exp"),
        (lambda b: b.expand(2, 3).sum(0), "sum"),
    ],
)
def test_constants_that_rounded_are_refused_by_name(constant, op):
    model, x = Computes(constant).eval(), torch.rand(2, 4)
    with pytest.raises(UsageError, match=f"'{op}' in the outermost module"):
        bound(model, x, sw.Linf(0.1), "crown", rigor="rigorous")
    bound(model, x, sw.Linf(0.1), "crown", rigor="float64")


def test_a_weight_norm_is_refused_until_it_is_made_a_parameter():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    x = torch.rand(2, 4)
    with pytest.raises(UsageError, match="module '2.parametrizations"):
        bound(model, x, sw.Linf(0.1), "ibp", rigor="rigorous")
    nn.utils.parametrize.remove_parametrizations(model[2], "weight")
    assert bound(model, x, sw.Linf(0.1), "ibp", rigor="rigorous").lower.isfinite().all()


def test_exact_constants_are_taken():
    for constant in (lambda b: 0.25 - b, lambda b: (b * b)[None, [0, 2, 1]].relu(), lambda b: b - 2 * b):
        model = Computes(constant).eval()
        assert bound(model, torch.rand(2, 4), sw.Linf(0.1), "ibp", rigor="rigorous").lower.isfinite().all()
