"""The traced graph computes what the module computes, for any batch, with parameters as they are now."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stalwart.core.errors import InputError
from stalwart.core.random import generator
from stalwart.graph import trace
from stalwart.graph.graph import evaluate
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
