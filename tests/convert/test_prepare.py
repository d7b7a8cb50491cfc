"""Networks made ready: each call of an activation a module of its own, the same function, and refusals that name a path."""

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from stalwart.convert import prepare
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.models import build_model
from stalwart.spiking import LIF, InTime
from stalwart.stochastic.heads import WCAHead

X = torch.rand(5, 1, 8, 8, generator=generator(0))


class Functional(nn.Module):
    """A chain of functions, one ReLU module called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.relu, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Linear(64, 3)

    def forward(self, x):
        x = F.avg_pool2d(self.relu(self.norm(self.first(x))), 2)
        x = self.relu(self.second(x))
        x = x.view(x.size(0), -1)
        return self.last(F.dropout(x, 0.1, self.training))


class Branched(Functional):
    """A sum of two branches before a functional ReLU."""

    def forward(self, x):
        held = F.relu(self.norm(self.first(x)))
        x = torch.relu(held + self.second(held))
        return self.last(torch.flatten(F.avg_pool2d(x, 2), 1))


class Branching(nn.Module):
    """Its way depends on values."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


def settled(model):
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        Functional,
        Branched,
        lambda: nn.Sequential(Branched()),
        lambda: build_model("resnet20", (1, 8, 8), 3),
        lambda: build_model("vgg-small", (1, 8, 8), 3, mean=[0.3], std=[0.5]),
    ],
)
def test_it_stays_the_same_function(make, fold):
    torch.manual_seed(0)
    model = settled(make())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers, found = prepare(model, fold)
    assert torch.allclose(layers(X), model(X), atol=1e-5)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert len(found.folded) == (norms if fold else 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_each_call_of_an_activation_is_found():
    layers, found = prepare(Functional())
    assert isinstance(layers, nn.Sequential)
    assert len(found.activations) == 2
    branched, found = prepare(Branched())
    assert isinstance(branched, fx.GraphModule)
    assert len(found.activations) == 2
    assert found.folded == {"inner.norm": "inner.first"}
    assert len(prepare(build_model("resnet20", (1, 8, 8), 3))[1].activations) == 19


def test_one_activation_in_two_places_of_a_stack_becomes_two():
    relu, pool = nn.ReLU(), nn.AvgPool2d(1)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), relu, pool, nn.Conv2d(2, 2, 3), relu, pool, nn.Flatten(), nn.Linear(32, 2)
    )
    layers, found = prepare(model)
    assert len(found.activations) == 2
    assert layers[1] is not layers[4]
    assert torch.equal(layers(X), model.eval()(X))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Linear(8, 8), nn.ReLU(), nn.GELU()], r"'2' \(GELU\).*train it with ReLU"),
        ([nn.Linear(8, 8), nn.ReLU(), nn.Sequential(nn.LayerNorm(8))], r"'2.0' \(LayerNorm\).*batch norm"),
        ([nn.Linear(8, 8), nn.ReLU(), nn.MaxPool1d(2)], r"MaxPool1d.*max_pool='spikes'"),
        ([nn.Linear(8, 8), nn.ReLU(), nn.Bilinear(8, 8, 2)], r"Bilinear.*build the network of"),
        ([nn.Linear(8, 8)], "no ReLU"),
        ([nn.Linear(8, 8), nn.ReLU(), Branching()], r"module '2' \(Branching\) cannot be traced"),
        ([nn.Linear(8, 8), InTime(LIF(), 2)], "spiking neurons already"),
        ([nn.Linear(8, 8), nn.ReLU(), WCAHead(8, 3)], "draws noise"),
    ],
)
def test_what_cannot_convert_is_named(layers, message):
    with pytest.raises(InputError, match=message):
        prepare(nn.Sequential(*layers))


def test_products_of_branches_are_refused():
    class Gated(nn.Module):
        def forward(self, x):
            return F.relu(x) * F.relu(x - 1)

    with pytest.raises(InputError, match="Gated.*calls 'mul'"):
        prepare(nn.Sequential(nn.Linear(8, 8), Gated()))


def test_before_the_first_neurons_an_analog_input_may_pass_anything():
    model = nn.Sequential(nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    assert prepare(model)[1].kept["0"] == "Tanh"
    with pytest.raises(InputError, match=r"'0' \(Tanh\)"):
        prepare(model, analog=False)


def test_max_pooling_is_kept_only_when_asked_for():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2))
    with pytest.raises(InputError, match="MaxPool2d"):
        prepare(model)
    assert "spikes" in prepare(model, max_pool="spikes")[1].kept["2"]
    with pytest.raises(UsageError, match="max_pool"):
        prepare(nn.Sequential(nn.ReLU()), max_pool="average")


def test_the_room_and_its_function_share_a_name():
    import stalwart as sw
    import stalwart.convert.tandem as tandem

    assert sw.convert.Tandem is tandem.Tandem
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert sw.convert(model, torch.rand(16, 4), steps=2)(torch.rand(2, 4)).shape == (2, 3)
