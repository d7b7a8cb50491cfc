"""Weights that range over intervals: sampled ones never leave the bounds, and what takes no interval is refused by name."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from stalwart.bounds import bound
from stalwart.core.errors import InputError
from stalwart.core.random import generator
from stalwart.models.param_ramp import ParamRamp
from stalwart.sets import Linf


class Uses(nn.Module):
    """Two linear layers around a function of the features and of two parameters, b [4] and m [3, 4]."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.b, self.m = nn.Parameter(torch.rand(4) + 0.2), nn.Parameter(torch.rand(3, 4) - 0.5)
        self.norm, self.slopes = nn.LayerNorm(4), nn.PReLU(4)
        self.ramp = ParamRamp((4,), 0.1)
        self.function = function

    def forward(self, x):
        z = self.function(self, self.first(x))
        return self.last(F.relu(z).flatten(1) if z.dim() == 2 else F.relu(z).mean(1))


USES = {
    "add": lambda s, z: z + s.b,
    "add-times": lambda s, z: torch.add(z, s.b, alpha=2.5),
    "broadcast": lambda s, z: s.m + z[:, None],
    "minus": lambda s, z: z - s.b,
    "from": lambda s, z: s.b - z,
    "minus-broadcast": lambda s, z: z[:, None] - s.m,
    "from-broadcast": lambda s, z: s.m - z[:, None],
    "times": lambda s, z: z * s.b,
    "times-broadcast": lambda s, z: z[:, None] * s.m,
    "over": lambda s, z: z / s.b,
    "cat": lambda s, z: torch.cat([z[:, None], s.m.expand(len(z), -1, -1)], 1),
    "moved": lambda s, z: z + s.m[1].reshape(2, 2).t().flatten(),
    "layer-norm": lambda s, z: s.norm(z),
    "prelu": lambda s, z: s.slopes(z),
    "param-ramp": lambda s, z: s.ramp(z),
    "matmul": lambda s, z: z @ s.m.t() @ s.m,
}


@functools.cache
def traced_once(name):
    torch.manual_seed(0)
    return Uses(USES[name]).double().eval()


def model_of(name, seed=0):
    model, source = traced_once(name), generator(seed)
    with torch.no_grad():
        for layer in (model.first, model.last):
            for parameter in layer.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=source) - 0.5)
        model.b.copy_(torch.rand(4, generator=source) + 0.2)
        model.m.copy_(torch.rand(3, 4, generator=source) - 0.5)
        for parameter in model.norm.parameters():
            parameter.copy_(torch.randn(4, generator=source))
        model.ramp.r.fill_(0.2)
        model.ramp.on.fill_(True)
        model.slopes.weight.copy_(torch.tensor([-0.5, 0.1, 0.9, 1.6]))
    return model


def contained(model, method, fraction, eps, seed):
    source = generator(seed)
    x = torch.rand(2, 3, generator=source, dtype=torch.float64)
    ends = {key: (p - fraction * p.abs(), p + fraction * p.abs()) for key, p in model.named_parameters()}
    within = Linf(eps)
    with torch.no_grad():
        found = bound(model, x, within, method, weights=ends)
        assert (found.lower <= found.upper).all()
        for number in range(40):
            share = {key: torch.rand(low.shape, generator=source, dtype=low.dtype) for key, (low, _) in ends.items()}
            if number % 2:
                share = {key: part.round() for key, part in share.items()}
            drawn = {key: low + (high - low) * share[key] for key, (low, high) in ends.items()}
            out = torch.func.functional_call(model, drawn, (within.sample(x, source),))
            assert (out >= found.lower - 1e-9).all()
            assert (out <= found.upper + 1e-9).all()


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
@pytest.mark.parametrize("name", USES)
def test_sampled_weights_stay_inside(name, method):
    contained(model_of(name), method, 0.1, 0.05, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(USES)),
    st.sampled_from(["ibp", "crown-ibp"]),
    st.floats(0, 0.5),
    st.floats(0, 0.3),
    st.integers(0, 999),
)
def test_sampled_weights_stay_inside_whatever_the_radius(name, method, fraction, eps, seed):
    contained(model_of(name, seed), method, fraction, eps, seed)


@pytest.mark.parametrize("name", [name for name in USES if "ramp" not in name])
def test_no_interval_means_no_difference(name):
    model, x = model_of(name), torch.rand(2, 3, dtype=torch.float64)
    nothing = {key: (p, p) for key, p in model.named_parameters()}
    for method in ("ibp", "crown-ibp"):
        one, other = (bound(model, x, Linf(0.1), method, weights=weights) for weights in (nothing, None))
        assert torch.allclose(one.lower, other.lower)
        assert torch.allclose(one.upper, other.upper)


@pytest.mark.parametrize("name", ["add", "broadcast", "minus-broadcast", "from-broadcast", "cat"])
def test_linear_forms_take_terms_that_vary_and_larger_fixed_operands(name):
    model, x = model_of(name), torch.rand(2, 3, dtype=torch.float64)
    for weights in (None, {"b": (model.b - 0.1, model.b + 0.1), "m": (model.m - 0.1, model.m + 0.1)}):
        with torch.no_grad():
            found = bound(model, x, Linf(0.1), "lbp", weights=weights)
            for seed in range(30):
                drawn = {} if weights is None else {key: ends[seed % 2] for key, ends in weights.items()}
                out = torch.func.functional_call(model, drawn, (Linf(0.1).sample(x, generator(seed)),))
                assert (out >= found.lower - 1e-9).all()
                assert (out <= found.upper + 1e-9).all()


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x) + 1)


def test_a_shared_parameter_varies_wherever_it_is_used():
    model, x = Shared().double(), torch.rand(2, 3, dtype=torch.float64)
    low, high = model.a.weight - 0.1, model.a.weight + 0.1
    found = bound(model, x, method="ibp", weights={"a.weight": (low, high)})
    with torch.no_grad():
        for weight in (low, high):
            out = (x @ weight.t() + 1) @ weight.t()
            assert (out >= found.lower - 1e-9).all()
            assert (out <= found.upper + 1e-9).all()


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda s, z: z + s.b.exp(), "'exp' .* the parameter 'b' .* leave"),
        (lambda s, z: torch.maximum(z, s.b), "'maximum' .* the parameter 'b'"),
        (lambda s, z: (z.abs() + 1) ** s.b[0], "'pow' .* made of parameters"),
        (lambda s, z: z / (s.b - s.b.detach()), "'sub' .* the parameter 'b'"),
    ],
)
def test_what_takes_no_interval_is_refused_by_name(function, says):
    model = Uses(function).eval()
    ends = {"b": (model.b - 0.1, model.b + 0.1)}
    for method in ("ibp", "crown-ibp"):
        with pytest.raises(InputError, match=says):
            bound(model, torch.rand(2, 3), Linf(0.1), method, weights=ends)


def test_what_an_interval_of_weights_cannot_be():
    model = model_of("over")
    x = torch.rand(2, 3, dtype=torch.float64)
    with pytest.raises(InputError, match="'div' .* ranges over 0"):
        bound(model, x, Linf(0.1), "ibp", weights={"b": (model.b - 9, model.b + 9)})
    ends = {"first.weight": (model.first.weight - 1, model.first.weight + 1)}
    with pytest.raises(InputError, match="'linear' in module 'first'.* 'crown-ibp'"):
        bound(model, x, Linf(0.1), "lbp", weights=ends)
