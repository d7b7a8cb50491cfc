"""Operators with options: what a rule does not heed is refused, and what it heeds is right."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import stalwart as sw
from stalwart.bounds import bound
from stalwart.core.errors import InputError, UsageError

METHODS = ("ibp", "crown-ibp", "crown", "lbp", "alpha-crown")


class Two(nn.Module):
    """Combine two linear layers by a function."""

    def __init__(self, combine):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 3)
        self.register_buffer("fixed", torch.tensor([0.1, -0.2, 0.3]))
        self.combine = combine

    def forward(self, x):
        return self.out(F.relu(self.combine(self.a(x), F.relu(self.b(x)), self.fixed)))


def contained(model, method):
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = bound(model, x, sw.Linf(0.2), method)
        for seed in range(200):
            draw = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed))
            z = (x + 0.2 * (2 * draw - 1).sign()).clamp(0, 1)
            y = model(z)
            assert (found.lower <= y + 1e-5).all()
            assert (found.upper >= y - 1e-5).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "combine",
    [
        lambda a, b, c: torch.sub(a, b, alpha=-2),
        lambda a, b, c: torch.add(a, b, alpha=-1),
        lambda a, b, c: torch.add(c, b, alpha=-1),
        lambda a, b, c: torch.add(a, b, alpha=3),
        lambda a, b, c: torch.maximum(a, c),
        lambda a, b, c: torch.minimum(c, a),
        lambda a, b, c: torch.log_softmax(50 * a, 1),
        lambda a, b, c: (a + 1) ** 1 - b,
        lambda a, b, c: a**0 * b + c,
        lambda a, b, c: a ** torch.tensor(1.0) + b ** torch.tensor(0.0),
    ],
    ids=["sub", "add", "fixed-add", "triple", "maximum", "minimum", "log-softmax", "to-1", "to-0", "to-tensors"],
)
def test_options_are_heeded(combine, method):
    contained(Two(combine).eval(), method)


@pytest.mark.parametrize(
    ("combine", "says"),
    [
        (lambda a, b, c: torch.div(a, 0.3, rounding_mode="floor"), "option rounding_mode"),
        (lambda a, b, c: 2.0**a, "exponent that depends"),
        (lambda a, b, c: torch.clamp(a, min=b), "two operands"),
        (lambda a, b, c: (b + 1) ** float("inf"), "'pow' in the outermost module: .* finite exponent"),
        (lambda a, b, c: (a - 9) ** 0.5, "'pow' in the outermost module: sqrt needs"),
        (lambda a, b, c: torch.log(a - 9), "'log' in the outermost module: log needs"),
    ],
    ids=["floor", "exponent", "clamp", "endless", "root", "log"],
)
def test_what_is_not_known_is_refused_by_name(combine, says):
    with pytest.raises(InputError, match=says):
        bound(Two(combine).eval(), torch.rand(3, 4), sw.Linf(0.1), "crown")


@pytest.mark.parametrize("method", ["lbp", "crown-lbp", "relaxed-crown-1", "alpha-crown"])
def test_rigour_is_not_promised_where_rounding_is_not_counted(method):
    with pytest.raises(UsageError, match="rigorous"):
        bound(nn.Linear(4, 3), torch.rand(3, 4), sw.Linf(0.1), method, rigor="rigorous")
