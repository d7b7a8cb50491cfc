"""What attacks on weights cannot do is refused with an error that names the problem."""

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.core.errors import BrokenPromiseError, InputError, UsageError
from stalwart.core.random import generator
from stalwart.sets import RelativeBox

X = torch.rand(6, 1, 8, 8, generator=generator(0))
Y = torch.arange(6) % 3
EVERY = pytest.mark.parametrize("name", ["weight-pgd", "weight-corner", "weight-amp"])


def smooth():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Softplus(), nn.Flatten(), nn.Linear(108, 3)).double().eval()


@EVERY
@pytest.mark.parametrize("within", [sw.Linf(0.1), sw.L2(0.1)])
def test_an_input_set_is_refused(name, within):
    with pytest.raises(UsageError, match="attacks weights.*set of inputs.*RelativeBox"):
        sw.attack(name)(smooth(), X, Y, within=within)


@pytest.mark.parametrize("name", ["pgd", "fgsm", "square", "transfer"])
def test_a_set_of_weights_is_refused(name):
    with pytest.raises(UsageError, match="attacks inputs.*RelativeBox fraction=0.1.*set of weights.*'weight-pgd'"):
        sw.attack(name)(smooth(), X, Y, within=sw.RelativeBox(0.1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("weight-pgd", {"steps": 0}, "steps"),
        ("weight-pgd", {"restarts": 0}, "restarts"),
        ("weight-pgd", {"init_noise": -1}, "init_noise"),
        ("weight-pgd", {"loss": "margin"}, "loss"),
        ("weight-pgd", {"eps": 0.1}, "no option 'eps'"),
        ("weight-corner", {"trials": 0}, "trials"),
        ("weight-amp", {"eps": 0}, "eps"),
        ("weight-amp", {"steps": 0}, "steps"),
        ("weight-amp", {"loss": "kl"}, "flat"),
        ("weight-pdg", {}, "Did you mean 'weight-pgd'"),
        ("weight-pgd", {"surrogate": "tringle"}, "triangle"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(UsageError, match=message):
        sw.attack(name, **options)


@EVERY
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X * torch.nan, Y, "NaN or infinity"),
        (X.byte(), Y, "floats"),
        (X[:0], Y[:0], "B >= 1"),
        (X, Y[:3], "3 labels for 6 inputs"),
        (X, Y + 1, "sample 2 has label 3"),
        (X, Y.float(), "integers"),
    ],
)
def test_bad_data(name, x, y, message):
    with pytest.raises(InputError, match=message):
        sw.attack(name)(smooth().float(), x, y, within=sw.RelativeBox(0.1))


def test_what_cannot_be_attacked():
    with pytest.raises(UsageError, match="no parameter"):
        sw.attack("weight-pgd")(smooth(), X.double(), Y, within=sw.RelativeBox(0.1, "*wieght"))
    with pytest.raises(UsageError, match="batch size"):
        sw.attack("weight-pgd")(smooth(), X.double(), Y, within=sw.RelativeBox(0.1), batch_size=0)

    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = smooth().float()

        def forward(self, x):
            return self.inner(x).detach()

    with pytest.raises(InputError, match="no gradient.*'weight-corner'"):
        sw.attack("weight-pgd")(Detached(), X, Y, within=sw.RelativeBox(0.1))
    assert sw.attack("weight-corner")(Detached(), X, Y, within=sw.RelativeBox(0.1)).cost.backwards.sum() == 0


def test_a_set_that_does_not_hold_its_own_projection_is_caught():
    class Liar(RelativeBox):
        def project(self, params, moved):
            return {name: 2 * tensor for name, tensor in moved.items()}

    with pytest.raises(BrokenPromiseError, match="WeightCorner left"):
        sw.attack("weight-corner")(smooth(), X.double(), Y, within=Liar(0.1))
