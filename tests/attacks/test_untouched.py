"""An attack leaves the model, the caller's tensors and torch's randomness exactly as they were, even when it fails."""

import copy

import pytest
import torch
from torch import nn
from traces import InPlaceCounter, snapshot

import stalwart as sw
from stalwart.core.random import generator
from stalwart.stochastic import GaussianHead, noise


class ReplacingCounter(InPlaceCounter):
    """Counts its calls by putting a new tensor in the buffer's place."""

    def forward(self, x):
        self.calls = self.calls + 1
        return x


class AlwaysTraining(nn.BatchNorm2d):
    """Batch normalisation that updates its statistics even in evaluation mode."""

    def forward(self, x):
        with torch.no_grad():
            self.running_mean = 0.9 * self.running_mean + 0.1 * x.mean((0, 2, 3))
            self.num_batches_tracked.add_(1)
        return super().forward(x)


class Fuse(nn.Module):
    """Raises at the call number ``left``."""

    def __init__(self):
        super().__init__()
        self.left = 10**9

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the model gave up")
        return x


def build():
    torch.manual_seed(0)
    model = nn.Sequential(
        Fuse(), InPlaceCounter(), ReplacingCounter(), nn.Conv2d(1, 4, 3), AlwaysTraining(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), GaussianHead(64, 3),
    )  # fmt: skip
    model.train()
    model[4].eval()  # modes differ from module to module
    model[8].eval()
    model[3].weight.requires_grad_(False)
    model[6].bias.grad = torch.full((4,), 3.0)
    return model


X = torch.rand(6, 1, 8, 8, generator=generator(0))
Y = torch.arange(6) % 3
ATTACKS = [
    ("fgsm", {}),
    ("pgd", {"steps": 3, "eot": 2, "restarts": 2}),
    ("apgd", {"steps": 5, "eot": 2, "restarts": 2}),
    ("autoattack", {"only": ["apgd-ce"]}),
    ("fab", {"steps": 3}),
    ("rfgsm", {}),
    ("square", {"queries": 5}),
    ("noise", {"trials": 2}),
    ("transfer", {"options": {"steps": 2}}),
    ("straight-through", {"options": {"steps": 2}}),
    ("double-precision", {"options": {"steps": 2}}),
]


@pytest.mark.parametrize(("name", "options"), ATTACKS)
def test_nothing_about_the_model_changes(name, options):
    model = build()
    before = snapshot(model)
    x, y = X.clone(), Y.clone()
    sw.attack(name, **options)(model, x, y, within=sw.Linf(0.1), batch_size=4)
    assert snapshot(model) == before
    assert torch.equal(x, X)
    assert torch.equal(y, Y)
    assert x.grad is None
    assert not x.requires_grad


@pytest.mark.parametrize(("name", "options"), ATTACKS)
@pytest.mark.parametrize("calls", [0, 1, 2, 4])
def test_nothing_changes_when_the_model_fails_midway(name, options, calls):
    model = build()
    before = snapshot(model)
    model[0].left = calls
    with pytest.raises(RuntimeError, match="gave up"):
        sw.attack(name, **options)(model, X, Y, within=sw.Linf(0.1))
    assert snapshot(model) == before


def test_the_source_of_a_transfer_is_left_alone_too():
    source, target = build(), build()
    before = snapshot(source)
    sw.attack("transfer", source=source, options={"steps": 2})(target, X, Y, within=sw.Linf(0.1))
    assert snapshot(source) == before
    source[0].left = 3
    with pytest.raises(RuntimeError, match="gave up"):
        sw.attack("transfer", source=source)(target, X, Y, within=sw.Linf(0.1))
    assert snapshot(source) == before


def test_the_noise_stream_goes_on_where_it_stood():
    model = GaussianHead(4, 3)
    x = torch.rand(5, 4, generator=generator(0))
    draws = []
    for attacked in (False, True):
        with noise(model, seed=0):
            first = model(x)
            if attacked:
                sw.attack("pgd", steps=2)(model, x, Y[:5], within=sw.Linf(0.1))
            draws.append((first, model(x)))
    assert torch.equal(draws[0][1], draws[1][1])


def test_the_model_is_attacked_in_evaluation_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model(X)
    results = []
    for training in (True, False):
        model.train(training)
        results.append(sw.attack("pgd", steps=4)(model, X, Y, within=sw.Linf(0.1)))
    assert torch.equal(results[0].x_adv, results[1].x_adv)
    assert torch.equal(results[0].margin, results[1].margin)


def test_a_caller_under_no_grad_gets_the_same_result():
    model = nn.Sequential(*build()[3:10], nn.Linear(64, 3))
    plain = sw.attack("pgd", steps=3)(model, X, Y, within=sw.Linf(0.1))
    with torch.no_grad():
        assert torch.equal(sw.attack("pgd", steps=3)(model, X, Y, within=sw.Linf(0.1)).x_adv, plain.x_adv)
        assert not torch.is_grad_enabled()


def test_the_result_owns_its_memory():
    model = nn.Linear(4, 3)
    x = torch.rand(5, 4, generator=generator(0))
    result = sw.attack("pgd")(model, x, Y[:5], within=sw.Linf(0.0))
    result.x_adv.add_(1)
    assert x.max() <= 1


def test_attacking_a_copy_in_other_threads_of_randomness_changes_nothing():
    torch.manual_seed(1)
    model = build()
    twin = copy.deepcopy(model)
    torch.manual_seed(2)
    first = sw.attack("pgd", steps=2)(model, X, Y, within=sw.Linf(0.1), seed=4)
    torch.manual_seed(3)
    second = sw.attack("pgd", steps=2)(twin, X, Y, within=sw.Linf(0.1), seed=4)
    assert torch.equal(first.x_adv, second.x_adv)
    assert torch.equal(first.margin, second.margin)


@pytest.mark.parametrize(
    ("name", "within"), [("pgd", sw.Linf(0.3)), ("deepfool", sw.L2(9.0)), ("spikefool", sw.Events(16))]
)
def test_the_callers_gradient_mode_does_not_matter(name, within):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
    x = (torch.rand(6, 1, 4, 4) < 0.5).float()
    y = model(x).argmax(1)
    with_gradients = sw.attack(name)(model, x, y, within=within)
    with torch.no_grad():
        without = sw.attack(name)(model, x, y, within=within)
        assert not torch.is_grad_enabled()
    assert torch.equal(with_gradients.x_adv, without.x_adv)
    assert with_gradients.success.any()
