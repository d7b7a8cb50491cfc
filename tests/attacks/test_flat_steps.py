"""Gradients straight through flat steps, in double precision, and of a cross entropy that cannot saturate."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import stalwart as sw
from stalwart.attacks.double_precision import Doubled, runs_in_double
from stalwart.attacks.losses import scaled_cross_entropy
from stalwart.attacks.straight_through import near_identities, straight_through
from stalwart.core.errors import InputError
from stalwart.core.random import generator

X = torch.rand(30, 12, generator=generator(0))


class Rounded(nn.Module):
    """Rounds to quarters and multiplies by a weight, all in one module."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x * 16).round() / 16)


class Quantise(nn.Module):
    """A step that only a submodule tells: comparisons, not rounding."""

    def forward(self, x):
        return sum((x > (k + 0.5) / 16).to(x) for k in range(16)) / 16


class Outside(Quantise):
    def forward(self, x):
        return super().forward(x.detach())


class Shuffled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x * 16).round() / 16

    @staticmethod
    def backward(ctx, g):
        return g.flip(1).roll(1, 1)


class Lying(nn.Module):
    """A quantiser whose gradient is another one's."""

    def forward(self, x):
        return Shuffled.apply(x)


def linear():
    torch.manual_seed(0)
    model = nn.Linear(12, 4)
    return model.requires_grad_(False)


STEPS = {
    "rounding": lambda inner: Rounded(inner),
    "comparisons": lambda inner: nn.Sequential(Quantise(), inner),
    "outside": lambda inner: nn.Sequential(Outside(), inner),
    "lying": lambda inner: nn.Sequential(Lying(), inner),
}


@pytest.mark.parametrize("kind", STEPS)
def test_the_gradient_is_that_of_the_model_without_the_step(kind):
    inner = linear()
    model = STEPS[kind](inner)
    leaf = X.clone().requires_grad_()
    alone = model(X)
    with straight_through(model, X):
        out = model(leaf)
        (found,) = torch.autograd.grad(F.cross_entropy(out, torch.zeros(30, dtype=torch.long)), leaf)
    assert torch.equal(out, alone), "outputs are the model's, bit for bit"
    here = alone.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(F.cross_entropy(here, torch.zeros(30, dtype=torch.long)), here)
    assert torch.allclose(found, wanted @ inner.weight, atol=1e-7)
    again = model(X.clone().requires_grad_())
    assert again.requires_grad == (kind in ("rounding", "lying")), "afterwards all is as before"


def test_only_steps_that_change_little_and_lie_are_found():
    class Half(nn.Module):
        def forward(self, x):
            return x / 2

    quantise, lying = Quantise(), Lying()
    model = nn.Sequential(
        Half(), quantise, lying, nn.Identity(), nn.ReLU(), nn.Dropout(0.5), linear(), nn.Tanh()
    ).eval()
    assert near_identities(model, X) == [quantise, lying]
    coarse = nn.Sequential(nn.Hardtanh(0.4, 0.6), linear())
    assert near_identities(coarse, X) == []


@pytest.mark.parametrize("kind", STEPS)
def test_it_breaks_a_quantised_model_as_the_model_itself(kind):
    inner = linear()
    y, within = inner(X).argmax(1), sw.Linf(0.25)
    model = STEPS[kind](inner)
    bare = sw.attack("pgd", loss="margin")(inner, X, y, within=within)
    found = sw.attack("straight-through", options={"loss": "margin"})(model, X, y, within=within)
    assert within.contains(X, found.x_adv).all()
    assert found.success.sum() >= bare.success.sum() - 1
    assert bare.success.sum() > 10
    assert torch.equal(found.success, ~(found.margin > 0))
    assert (found.cost.backwards[~found.success] >= 20).all()
    if kind in ("outside", "comparisons"):
        with pytest.raises(InputError, match="no gradient"):
            sw.attack("pgd")(model, X, y, within=within)
    else:
        assert sw.attack("pgd", loss="margin")(model, X, y, within=within).success.sum() < found.success.sum() - 5


def test_a_step_that_is_no_submodule_and_no_rounding_is_refused():
    inner = linear()

    class Whole(nn.Module):
        def forward(self, x):
            return inner(torch.from_numpy(x.detach().numpy().round(1)))

    with pytest.raises(InputError, match="no gradient"):
        sw.attack("straight-through")(Whole(), X, inner(X).argmax(1), within=sw.Linf(0.1))


# Double precision.


def big(scale):
    model = linear()
    with torch.no_grad():
        model.weight.mul_(scale)
        model.bias.mul_(scale)
    return model


def test_double_precision_has_the_gradient_that_float32_rounds_away():
    model = big(400.0)
    before = copy.deepcopy(model.state_dict())
    y, within = model(X).argmax(1), sw.Linf(0.2)
    leaf = X.double().requires_grad_()
    (found,) = torch.autograd.grad(F.cross_entropy(Doubled(model)(leaf), y, reduction="sum"), leaf)
    weight, bias = model.weight.double(), model.bias.double()
    share = (X.double() @ weight.T + bias).softmax(1)
    wanted = (share - F.one_hot(y, 4)) @ weight
    # What is left of the probability of the label to 1 is exactly the sum of the others.
    exact = share.scatter(1, y[:, None], 0)
    wanted = (exact - F.one_hot(y, 4) * exact.sum(1, keepdim=True)) @ weight
    some = exact.sum(1) > 1e-10
    assert some.any()
    assert torch.allclose(found[some], wanted[some], rtol=1e-4)
    low = sw.attack("pgd")(model, X, y, within=within)
    high = sw.attack("double-precision")(model, X, y, within=within)
    assert high.success.sum() > low.success.sum()
    assert high.x_adv.dtype == torch.float32
    assert within.contains(X, high.x_adv).all()
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())


def test_a_model_with_float32_of_its_own_does_not_run_in_double():
    inner = linear()

    class Own(nn.Module):
        def forward(self, x):
            return x.float() @ inner.weight.T

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = [torch.rand(12, 4)]

        def forward(self, x):
            return x @ self.matrix[0]

    assert runs_in_double(inner, X)
    assert runs_in_double(Own(), X)
    assert not runs_in_double(Fixed(), X)
    snn = sw.convert(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), X, steps=2)
    assert not sw.attack("double-precision").fits(snn, sw.Linf(0.1))
    assert sw.attack("double-precision").fits(inner, sw.Linf(0.1))


# The scaled cross entropy.


def test_the_scaled_cross_entropy_by_hand():
    z = torch.tensor([[3.0, 1.0, -1.0], [0.0, 4.0, 8.0]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 0])
    found = scaled_cross_entropy(z, y)
    assert found.tolist() == [-2.0, 8.0], "the value is the margin's"
    (slope,) = torch.autograd.grad(found.sum(), z)
    label = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    # Leads 2 and 4, which are constants: logits 1.5, 0.5, -0.5 and 0, 1, 2.
    for row, scaled, lead in zip(slope, ([1.5, 0.5, -0.5], [0.0, 1.0, 2.0]), (2, 4), strict=True):
        share = torch.tensor(scaled, dtype=torch.float64).softmax(0)
        assert torch.allclose(row, (share - label) / lead)


def test_no_scale_starves_the_scaled_cross_entropy():
    results = []
    for scale in (1.0, 1e5):
        model = big(scale)
        y = model(X).argmax(1)
        results.append(sw.attack("bim", loss="scaled-ce", steps=10)(model, X, y, within=sw.Linf(0.15)).success)
    assert (results[0] == results[1]).float().mean() > 0.9
    assert results[1].sum() > sw.attack("bim", steps=10)(model, X, y, within=sw.Linf(0.15)).success.sum()
