"""The traced graph computes what the module computes, for any batch, with parameters as they are now."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stalwart.core.errors import InputError
from stalwart.core.random import generator
from stalwart.graph import export, trace
from stalwart.graph.export import PLAIN, decomposed, operators, programs_of
from stalwart.graph.graph import evaluate
from stalwart.graph.trace import _Reader
from stalwart.models import build_model


def run(graph, model, x):
    values = graph.fixed(model)
    values[graph.input] = x
    for node in graph.nodes:
        if node not in values:
            values[node] = evaluate(node, values.__getitem__)
    return values[graph.output]


class Many(nn.Module):
    """Reshapes, splits, states made for the batch, a normalisation and an LSTM cell."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.linear, self.layer = nn.Linear(4 * 3 * 3, 6), nn.LayerNorm(6)
        self.scale = nn.Parameter(torch.randn(1, 6, generator=generator(1)))
        self.cell = nn.LSTMCell(6, 5)

    def forward(self, x):
        h = F.relu(self.norm(self.conv(x)), inplace=True)
        h = F.max_pool2d(h, 2).view(len(h), -1)
        h = self.layer(self.linear(h)) * self.scale.exp()
        a, b = torch.cat([h, h[:, :2]], 1).split([6, 2], 1)
        h, c = self.cell(a - b.mean(1, keepdim=True) / (1 + b[:, :1] ** 2))
        return F.gelu(h).clamp(0, 1) + torch.softmax(c, -1) + torch.zeros(len(x), 5)


class Attention(nn.Module):
    """One head-split attention over four tokens."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(6, 18), nn.Linear(6, 6), nn.Linear(24, 3)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, 3)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.out(mixed)).flatten(1))


@pytest.mark.parametrize("batch", [1, 4, 13])
@pytest.mark.parametrize(("model", "shape"), [(Many(), (1, 6, 6)), (Attention(), (4, 6))])
def test_the_graph_computes_the_module(model, shape, batch):
    x = torch.rand(batch, *shape, generator=generator(2))
    graph = trace(model, x)
    assert torch.allclose(run(graph, model.eval(), x), model(x), atol=1e-5)


def test_parameters_are_read_live_and_the_graph_is_kept():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    x = torch.rand(2, 3, generator=generator(0))
    graph = trace(model, x)
    with torch.no_grad():
        model[0].weight.mul_(-2)
    assert trace(model, x) is graph
    assert torch.allclose(run(graph, model, x), model(x))
    model[1] = nn.Tanh()
    assert trace(model, x) is not graph, "another structure is another graph"


def test_gradients_reach_parameters():
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    x = torch.rand(2, 3, generator=generator(0))
    run(trace(model, x), model, x).sum().backward()
    assert model[0].weight.grad is not None


def test_tracing_leaves_the_mode_alone():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).train()
    trace(model, torch.rand(2, 3))
    assert model.training
    assert model[1].training


@pytest.mark.parametrize("name", ["mlp", "small-cnn", "pooled-cnn", "lenet++", "dm-small", "vgg5", "resnet20"])
def test_shipped_models_are_traced(name):
    shape = (1, 28, 28) if name != "resnet20" else (3, 32, 32)
    model = build_model(name, shape, 10, {}).eval()
    x = torch.rand(2, *shape, generator=generator(0))
    graph = trace(model, x)
    assert torch.allclose(run(graph, model, x), model(x), atol=1e-4)
    assert all(isinstance(node.path, str) for node in graph.nodes)


class Branching(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Mixing(nn.Module):
    def forward(self, x):
        return x.transpose(0, 1) @ x


class Two(nn.Module):
    def forward(self, x):
        return x, x + 1


@pytest.mark.parametrize(("model", "message"), [(Branching(), "traced"), (Mixing(), "batch"), (Two(), "return one")])
def test_what_cannot_be_traced_is_refused(model, message):
    with pytest.raises(InputError, match=message):
        trace(model, torch.rand(3, 3))


def test_a_nodes_module_is_named():
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), nn.Linear(2, 2))
    graph = trace(model, torch.rand(2, 3))
    relu = next(node for node in graph.nodes if node.op == "relu")
    assert relu.path == "0.1"
    assert relu.where == "'relu' in module '0.1'"


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.k, self.fixed, self.function = 1.0, torch.ones(3), F.relu

    def forward(self, x):
        return self.function(self.k * x * self.fixed)


def test_no_stale_graph_after_an_attribute_changes():
    model, x = Scaled(), torch.rand(2, 3, generator=generator(0)) - 0.5
    first = trace(model, x)
    assert trace(model, x) is first
    for name, value in [("k", 5.0), ("fixed", torch.arange(3.0)), ("function", torch.tanh), ("k", -0.0)]:
        setattr(model, name, value)
        assert torch.allclose(run(trace(model, x), model, x), model(x)), name
    model.k = 2.0
    model.fixed.data.mul_(2)
    assert torch.allclose(run(trace(model, x), model, x), model(x))


def test_no_stale_graph_after_an_option_that_repr_hides_changes():
    model, x = nn.Sequential(nn.AvgPool2d(2, padding=1), nn.Flatten()), torch.rand(2, 1, 4, 4)
    trace(model, x)
    model[0].count_include_pad = False
    assert torch.allclose(run(trace(model, x), model, x), model(x))


def test_a_module_without_a_key_is_traced_anew():
    model, x = Scaled(), torch.rand(2, 3)
    model.other = object()
    assert trace(model, x) is not trace(model, x)


class Calls(nn.Module):
    def __init__(self, function, width=4):
        super().__init__()
        self.lin, self.function = nn.Linear(3, width), function

    def forward(self, x):
        return self.function(self.lin(x))


MIXERS = [
    ("flip", lambda z: z.flip(0)),
    ("cumsum", lambda z: z.cumsum(0)),
    ("roll", lambda z: torch.roll(z, 1, 0)),
    ("roll", lambda z: torch.roll(z, 1)),
    ("div", lambda z: z / z.shape[0]),
    ("index", lambda z: z[torch.arange(len(z)).flip(0)]),
    ("sort", lambda z: z.sort(0).values),
    ("softmax", lambda z: torch.softmax(z, 0)),
    ("mean", lambda z: z - z.mean(0)),
    ("expand|batch", lambda z: z.sum(0)),
    ("batch", lambda z: z.t() @ z),
    ("norm", lambda z: F.batch_norm(z, None, None, training=True)),
]


@pytest.mark.parametrize(("name", "mixer"), MIXERS)
@pytest.mark.parametrize("width", [1, 13, 101])
def test_a_module_that_mixes_samples_is_refused(name, mixer, width):
    state = torch.get_rng_state()
    model = Calls(mixer, width)
    with pytest.raises(InputError, match="batch") as caught:
        trace(model, torch.rand(2, 3))
    assert "module" in str(caught.value)
    torch.set_rng_state(state)


@pytest.mark.parametrize("width", [13, 101, 103])
def test_features_as_many_as_a_traced_batch(width):
    model, x = Calls(lambda z: z.flip(1).cumsum(1) + z.tanh(), width), torch.rand(2, 3)
    assert torch.allclose(run(trace(model, x), model, x), model(x), atol=1e-5)


class Tokens(nn.Module):
    """A class token for every sample before the others, and a position added to each."""

    def __init__(self, repeat):
        super().__init__()
        self.lin, self.repeat = nn.Linear(6, 4), repeat
        self.cls = nn.Parameter(torch.randn(1, 1, 4, generator=generator(0)))
        self.place = nn.Parameter(torch.randn(1, 4, 4, generator=generator(1)))

    def forward(self, x):
        return (torch.cat([self.repeat(self.cls, len(x)), self.lin(x)], 1) + self.place).tanh()


TOKENS = {
    "expand": lambda token, rows: token.expand(rows, -1, -1),
    "from-nothing": lambda token, rows: token[0].expand(rows, 1, 4),
    "repeat": lambda token, rows: token.repeat(rows, 1, 1),
    "computed": lambda token, rows: 2 * token.expand(rows, -1, -1).view(rows, 4).unsqueeze(1),
    "made": lambda token, rows: torch.ones(rows, 1, 4) * token,
}


@pytest.mark.parametrize("name", TOKENS)
def test_a_row_for_every_sample(name):
    model, x = Tokens(TOKENS[name]), torch.rand(5, 3, 6, generator=generator(2))
    graph = trace(model, x)
    for rows in (1, 5):
        assert torch.allclose(run(graph, model, x[:rows]), model(x[:rows]), atol=1e-6)


@pytest.mark.parametrize(
    "mixing",
    [
        lambda token, rows: token.expand(rows, -1, -1).sum(0, keepdim=True),
        lambda token, rows: token.expand(rows, -1, -1).cumsum(0),
        lambda token, rows: torch.softmax(token.expand(rows, -1, -1), 0),
        lambda token, rows: torch.ones(rows, 1, 4).cumsum(0) * token,
        lambda token, rows: token.expand(rows, -1, -1) / rows,
    ],
)
def test_rows_for_every_sample_must_not_be_mixed_either(mixing):
    with pytest.raises(InputError, match="batch"):
        trace(Tokens(lambda token, rows: mixing(token, rows).expand(rows, -1, -1)), torch.rand(5, 3, 6))


@pytest.mark.parametrize("width", [101, 103, 107])
def test_numbers_of_a_module_may_equal_the_sizes_that_it_is_traced_with(width):
    fixed = nn.Parameter(torch.rand(1, 4, generator=generator(0)))
    functions = [
        lambda z: z[:, None] + torch.ones(width, 4),
        lambda z: z[:, None] * fixed.expand(width, 4),
        lambda z: z * width + torch.zeros(len(z), 4),
        lambda z: z[:, :1].expand(-1, width).reshape(-1, width),
        lambda z: z * sum(z[:, :1] * k for k in (101, 103, 105)),
    ]
    x = torch.rand(3, 3, generator=generator(1))
    for function in functions:
        model = Calls(function)
        assert torch.allclose(run(trace(model, x), model, x), model(x), atol=1e-4)


def test_a_program_without_sizes_is_written_out_once(monkeypatch):
    import sys

    module = sys.modules["stalwart.graph.trace"]
    seen, original = [], module.decomposed
    monkeypatch.setattr(module, "decomposed", lambda program: (seen.append(program), original(program))[1])
    x = torch.rand(2, 3)
    trace(Calls(lambda z: torch.softmax(z, 1)), x)
    assert len(seen) == 1
    trace(Calls(lambda z: z.view(len(z), 2, 2).relu()), x)
    assert len(seen) == 3


def test_tracing_leaves_random_state_alone():
    model, before = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), torch.get_rng_state()
    trace(model, torch.zeros(2, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_description_tells_options_and_wiring_apart():
    x = torch.zeros(2, 3)
    functions = [
        lambda z: F.leaky_relu(z, 0.01),
        lambda z: F.leaky_relu(z, 5.0),
        lambda z: z - 2 * z,
        lambda z: 2 * z - z,
    ]
    functions += [lambda z: z + torch.tensor([1.0]), lambda z: z + torch.tensor([2.0])]
    texts = ["\n".join(trace(Calls(function), x).describe()) for function in functions]
    assert len(set(texts)) == len(functions)
    assert "\n".join(trace(Calls(functions[0]), x).describe()) == texts[0]
    assert "0x" not in "".join(texts)


class Plain(nn.Module):
    """Every operator that is read without being written out, but for those on sequences."""

    def __init__(self):
        super().__init__()
        self.conv, self.same, self.norm = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3, padding="same"), nn.BatchNorm2d(2)
        self.linear, self.prelu = nn.Linear(2 * 4, 5), nn.PReLU()

    def forward(self, x):
        x = F.relu(self.norm(self.same(self.conv(x))))
        x = F.adaptive_avg_pool2d(F.avg_pool2d(F.max_pool2d(x, 3, 1), 2, 1), (2, 2))
        x = self.linear(x.flatten(1))
        for function in (
            F.leaky_relu, F.hardtanh, F.sigmoid, F.tanh, F.gelu, F.silu, F.softplus, F.elu, F.relu6, self.prelu,
            torch.abs, torch.sign, torch.exp, torch.log, torch.sqrt, torch.reciprocal, torch.erf, torch.square,
            torch.sin, torch.cos, torch.neg,
        ):  # fmt: skip
            x = x + function(x)
        x = torch.cat([torch.maximum(x, x.flip(1)), torch.minimum(x.clamp(-1, 1), x.clamp_min(0))], 1)
        return x * 2 - x / (1 + x**4) + x.sum(1, keepdim=True) * x.mean(1, keepdim=True)


def test_plain_operators_read_the_same_written_out_or_not(monkeypatch):
    met = set()
    for model, shape in ((Plain(), (1, 9, 9)), (nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten()), (1, 5))):
        (program, _), (batch, _) = programs_of(model.eval(), torch.rand(1, *shape))
        met |= operators(program)
        short = decomposed(program)
        with monkeypatch.context() as patch:
            patch.setattr(export, "PLAIN", frozenset())
            full = decomposed(program)
        assert short is program
        assert full is not program
        assert facts(_Reader(short, batch).graph()) == facts(_Reader(full, batch).graph())
    assert met == PLAIN


def facts(graph):
    """Return all that a graph says but for the names of its nodes."""
    number = {node: f"node {place}" for place, node in enumerate(graph.nodes)}

    def plain(value):
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return number.get(value, value)

    def rest(node):
        return node.shape, node.batched, node.path, graph.sources.get(node.name)

    return [
        (node.op, node.target, plain(node.args), {key: plain(one) for key, one in node.kwargs.items()}, *rest(node))
        for node in graph.nodes
    ]
