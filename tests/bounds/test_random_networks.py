"""Random networks, boxes, methods and strategies: no sampled point may leave its bounds (`make fuzz-bounds`: for long)."""

import os

import hypothesis
import torch
from hypothesis import strategies as st
from tests.bounds.nets import FUNCTIONS, Call
from torch import nn

import stalwart as sw
from stalwart.bounds import METHODS, bound
from stalwart.core.random import generator

SMOOTH = {"log", "sqrt", "reciprocal", "power", "exp", "cube", "quotient", "layer_norm", "log_softmax"}
"""Functions whose bounds overflow on wide boxes, where they are refused or infinite by right."""


class Mixed(nn.Module):
    """Linear layers with a function of its own after each, and sometimes a sum with an earlier layer."""

    def __init__(self, names, skips):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4 if k == 0 else 5, 5) for k in range(len(names)))
        self.functions = nn.ModuleList(Call(FUNCTIONS[name]) for name in names)
        self.skips, self.head = skips, nn.Linear(5, 3)

    def forward(self, x):
        kept = None
        for layer, function, skip in zip(self.layers, self.functions, self.skips, strict=True):
            x = function(layer(x))
            if skip and kept is not None:
                x = x + kept
            kept = x
        return self.head(x)


@st.composite
def cases(draw):
    names = draw(st.lists(st.sampled_from(sorted(FUNCTIONS)), min_size=1, max_size=3))
    skips = [draw(st.booleans()) for _ in names]
    wide = not SMOOTH & set(names) and len(names) < 3
    eps = draw(st.sampled_from([0.0, 0.001, 0.01] + ([0.1, 0.5] if wide else [])))
    method, strategy = (
        draw(st.sampled_from(sorted(METHODS))),
        draw(st.sampled_from(["tight", "adaptive", "one", "same-slope"])),
    )
    return names, skips, eps, method, strategy, draw(st.integers(0, 10**6)), draw(st.floats(0.1, 1.0))


@hypothesis.settings(max_examples=int(os.environ.get("STALWART_EXAMPLES", "25")))
@hypothesis.given(case=cases())
def test_no_point_leaves_its_bounds(case):
    names, skips, eps, method, strategy, seed, scale = case
    source = generator(seed)
    model = Mixed(names, skips).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source) * scale)
        x = torch.rand(2, 4, generator=source, dtype=torch.float64)
        within = sw.Linf(eps)
        found = bound(model, x, within, method, strategy=strategy)
        for _ in range(40):
            z = within.sample(x, source)
            if torch.rand((), generator=source) < 0.5:
                z = within.project(x, x + eps * torch.randn(x.shape, generator=source).sign())
            out = model(z)
            room = 1e-9 * (1 + out.abs())
            # NaN and infinity prove nothing and so break no promise.
            assert not (found.lower > out + room).any()
            assert not (found.upper < out - room).any()
