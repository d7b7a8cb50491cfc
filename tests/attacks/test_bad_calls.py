"""What cannot be attacked is refused with an error that names the problem; the docstring's example runs."""

import doctest
import sys

import pytest
import torch
from torch import nn

import stalwart as sw
from stalwart.attacks import Attack
from stalwart.core.errors import BrokenPromiseError, InputError, UsageError
from stalwart.core.random import generator

X = torch.rand(4, 1, 3, 3, generator=generator(0))
Y = torch.tensor([0, 1, 2, 0])


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 3))


class Returns(nn.Module):
    """Returns what a function makes of good logits."""

    def __init__(self, change):
        super().__init__()
        self.inner, self.change = net(), change

    def forward(self, x):
        return self.change(self.inner(x))


def with_value(value, sample=2):
    x = X.clone()
    x[sample, 0, 1, 1] = value
    return x


EVERY = pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "apgd", "noise", "transfer"])


@EVERY
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (with_value(float("nan")), Y, "NaN or infinity, first in sample 2"),
        (with_value(float("inf")), Y, "NaN or infinity"),
        (with_value(1.5), Y, r"must lie in \[0, 1\].*normalisation"),
        (X * 255, Y, "x / 255"),
        ((X * 255).byte(), Y, "floats"),
        (X[:0], Y[:0], r"B >= 1"),
        (X, Y[:3], "3 labels for 4 inputs"),
        (X, Y + 1, "sample 2 has label 3"),
        (X, Y - 1, "sample 0 has label -1"),
        (X, Y.float(), "integers"),
        (X, Y[:, None], "integers of shape"),
        (X.half(), Y, "float32 or float64"),
    ],
)
def test_bad_data(name, x, y, message):
    with pytest.raises(InputError, match=message):
        sw.attack(name)(net(), x, y, within=sw.Linf(0.1))


@EVERY
@pytest.mark.parametrize("radii", [[0.1] * 3, [0.1] * 5, [0.1]])
@pytest.mark.parametrize("kind", [sw.Linf, sw.L2])
def test_a_wrong_number_of_radii(name, radii, kind):
    with pytest.raises(InputError, match=f"{len(radii)} radii but there are 4 inputs"):
        sw.attack(name)(net(), X, Y, within=kind(radii))


@EVERY
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: z[:, 0], r"gave \[2\]"),
        (lambda z: z[:, :1], r"gave \[2, 1\]"),
        (lambda z: z[:1], r"gave \[1, 3\]"),
        (lambda z: z[..., None], r"gave \[2, 3, 1\]"),
        (lambda z: (z, z), "returned tuple"),
        (lambda z: z.long(), "returned torch.int64"),
    ],
)
def test_a_model_that_does_not_return_logits(name, change, message):
    with pytest.raises(InputError, match=message):
        sw.attack(name)(Returns(change), X, Y, within=sw.Linf(0.1))


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "apgd", "transfer"])
@pytest.mark.parametrize(
    "change", [torch.Tensor.detach, lambda z: torch.from_numpy(z.detach().numpy().copy()), lambda z: torch.ones_like(z)]
)
def test_a_model_without_gradient(name, change):
    with pytest.raises(InputError, match="no gradient.*transfer attack"):
        sw.attack(name)(Returns(change), X, Y, within=sw.Linf(0.1))


def test_attacks_that_need_no_gradient_do_without():
    model = Returns(torch.Tensor.detach)
    assert sw.attack("noise", trials=3)(model, X, Y, within=sw.Linf(0.3)).cost.backwards.sum() == 0
    sw.attack("transfer", source=net())(model, X, Y, within=sw.Linf(0.3))


@EVERY
def test_a_model_that_writes_into_its_input(name):
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            x -= 0.5
            return self.inner(x)

    x = X.clone()
    with pytest.raises(InputError, match="in place"):
        sw.attack(name)(Writes(), x, Y, within=sw.Linf(0.1))
    assert torch.equal(x, X)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
@EVERY
def test_any_integer_labels_do(name, dtype):
    wide, narrow = (sw.attack(name)(net(), X, y, within=sw.Linf(0.1)) for y in (Y, Y.to(dtype)))
    assert torch.equal(wide.x_adv, narrow.x_adv)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_an_impossible_batch_size(batch_size):
    with pytest.raises(UsageError, match=f"batch size must be at least 1, got {batch_size}"):
        sw.attack("pgd")(net(), X, Y, within=sw.Linf(0.1), batch_size=batch_size)


def test_a_source_with_other_classes():
    torch.manual_seed(0)
    source = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    with pytest.raises(InputError, match="source returns 2 logits but the target 3"):
        sw.attack("transfer", source=source)(net(), X, Y, within=sw.Linf(0.1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pdg", {}, "Did you mean 'pgd'"),
        ("pgd", {"step_size": 0.1}, "no option 'step_size'"),
        ("noise", {"trials": 0}, "trials"),
        ("noise", {"kind": "salt"}, "kind"),
        ("transfer", {"attack": "pdg"}, "Did you mean 'pgd'"),
        ("transfer", {"options": {"stepz": 1}}, "stepz"),
        ("transfer", {"source": "noise-on"}, "source"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(UsageError, match=message):
        sw.attack(name, **options)


def test_nan_logits_count_as_broken():
    result = sw.attack("pgd", steps=2)(Returns(lambda z: z * float("nan")), X, Y, within=sw.Linf(0.1))
    assert result.success.all()


def test_an_attack_that_leaves_its_set_is_caught():
    class Liar(sw.Linf):
        def project(self, x, z):
            return z

    class Far(Attack):
        def run(self, oracle, x, y, within, seed):
            out = x.clone()
            out[1] += 0.2
            return out

    with pytest.raises(BrokenPromiseError, match=r"Far left Liar eps=0.1 in sample 1"):
        Far()(net(), X * 0.5, Y, within=Liar(0.1))
    result = Far()(net(), X * 0.5, Y, within=sw.Linf(0.1))
    assert sw.Linf(0.1).contains(X * 0.5, result.x_adv).all(), "an honest set clips what an attack returns"


def test_the_example_in_the_docstring_runs():
    outcome = doctest.testmod(sys.modules[sw.attack.__module__])
    assert outcome.attempted >= 5
    assert outcome.failed == 0
