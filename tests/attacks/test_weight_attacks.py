"""Attacks on weights: the worst corner of linear models, containment, chunks, and models left as they were."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from traces import InPlaceCounter, snapshot

import stalwart as sw
from stalwart.attacks.weight_steps import climbed, started, stepped
from stalwart.core.errors import UsageError
from stalwart.core.random import generator
from stalwart.models import build_model
from stalwart.models.spiking import Spiking
from stalwart.sets import RelativeBox
from stalwart.stochastic import GaussianHead

X = torch.rand(6, 1, 8, 8, generator=generator(0))
Y = torch.arange(6) % 3
NAMES = ("weight-pgd", "weight-corner", "weight-amp")
EVERY = pytest.mark.parametrize("name", NAMES)


def messy():
    torch.manual_seed(0)
    model = nn.Sequential(
        InPlaceCounter(), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(144, 5), nn.BatchNorm1d(5), nn.ReLU(), GaussianHead(5, 3),
    )  # fmt: skip
    model.train()
    model[2].eval()  # modes differ from module to module
    model[1].weight.requires_grad_(False)
    model[6].bias.grad = torch.full((5,), 3.0)
    return model


def smooth():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Softplus(), nn.Flatten(), nn.Linear(108, 3)).double().eval()


def two_class(seed=0):
    """Return a linear model of two classes with 7 inputs of one label, and the least margin each has over the box."""
    torch.manual_seed(seed)
    model = nn.Linear(5, 2, bias=False).double()
    x = torch.rand(7, 5, generator=generator(seed), dtype=torch.float64) + 0.1
    y = torch.zeros(7, dtype=torch.long)
    logits = (x @ model.weight.t()).detach()

    def least(fraction):
        return logits[:, 0] - logits[:, 1] - fraction * (x @ model.weight.detach().abs().t()).sum(1)

    return model, x, y, least


@pytest.mark.parametrize("loss", ["ce", "kl"])
@pytest.mark.parametrize("fraction", [0.05, 0.4])
def test_the_worst_corner_of_a_linear_model_is_found(loss, fraction):
    # Inputs are positive and share one label, so that one corner is the worst for all of them.
    model, x, y, least = two_class()
    noise = 0.0 if loss == "ce" else 1e-9
    result = sw.attack("weight-pgd", loss=loss, init_noise=noise)(model, x, y, within=sw.RelativeBox(fraction))
    if loss == "ce":
        torch.testing.assert_close(result.margin, least(fraction))
        assert torch.equal(result.success, ~(least(fraction) > 0))
    moved = result.parameters["weight"]
    torch.testing.assert_close((moved - model.weight).abs(), fraction * model.weight.abs())
    corners = [torch.tensor(signs, dtype=torch.float64) for signs in itertools.product((-1.0, 1.0), repeat=10)]
    clean = model(x).log_softmax(1).detach()

    def value(weight):
        out = (x @ weight.t()).log_softmax(1)
        return float(F.nll_loss(out, y) if loss == "ce" else (clean.exp() * (clean - out)).sum(1).mean())

    every = [value(model.weight.detach() * (1 + fraction * signs.reshape(2, 5))) for signs in corners]
    assert result.loss.after == pytest.approx(max(every), rel=1e-9 if loss == "ce" else 0.3)
    assert result.loss.before == pytest.approx(value(model.weight.detach()), abs=1e-12)


def test_what_is_reported_is_what_the_weights_do():
    model = smooth()
    x = X.double()
    for name in NAMES:
        result = sw.attack(name)(model, x, Y, within=sw.RelativeBox(0.3, "*"))
        logits = functional_call(model, result.parameters, (x,)).detach()
        others = logits.scatter(1, Y[:, None], -torch.inf).amax(1)
        torch.testing.assert_close(result.margin, logits.gather(1, Y[:, None])[:, 0] - others)
        assert torch.equal(result.success, ~(result.margin > 0))
        assert result.loss.after == pytest.approx(float(F.cross_entropy(logits, Y)))
        assert result.loss.before == pytest.approx(float(F.cross_entropy(model(x), Y).detach()))
        assert result.loss.after > result.loss.before
        assert set(result.parameters) == {name for name, _ in model.named_parameters()}


def test_pgd_by_hand():
    model, x, fraction, steps = smooth(), X.double(), 0.2, 3
    box = sw.RelativeBox(fraction)
    params = {name: p.detach() for name, p in box.select(model).items()}
    source = generator(5, "weights", 0)
    moved = {
        key: p + 0.01 * p.abs() * torch.randn(p.shape, generator=source, dtype=p.dtype) for key, p in params.items()
    }
    best = []
    for step in range(steps + 1):
        leaves = {key: tensor.detach().requires_grad_() for key, tensor in moved.items()}
        loss = F.cross_entropy(functional_call(model, leaves, (x,)), Y)
        best.append((float(loss.detach()), moved))
        if step == steps:
            break
        loss.backward()
        moved = {
            key: torch.minimum(
                torch.maximum(leaf.detach() + fraction / steps * params[key].abs() * leaf.grad.sign(),
                              params[key] - fraction * params[key].abs()),
                params[key] + fraction * params[key].abs(),
            )
            for key, leaf in leaves.items()
        }  # fmt: skip
    found = sw.attack("weight-pgd", steps=steps, init_noise=0.01)(model, x, Y, within=box, seed=5)
    value, expected = max(best, key=lambda pair: pair[0])
    assert found.loss.after == pytest.approx(value, rel=1e-12)
    for key in params:
        torch.testing.assert_close(found.parameters[key], expected[key])


def test_iterates_overshoot_without_projection_and_the_result_does_not():
    params, box = {"w": torch.tensor([1.0, -2.0] * 20)}, RelativeBox(0.1)
    slopes = {"w": torch.tensor([3.0, -1.0] * 20)}
    for project in (True, False):
        moved = begun = started(params, box, 0.05, project, generator(0))
        for _ in range(4):
            moved = stepped(params, moved, slopes, box, 4, project)
        assert box.contains(params, moved) is project
        free = begun["w"] + 0.1 * params["w"].abs() * slopes["w"].sign()
        torch.testing.assert_close(moved["w"], box.project(params, {"w": free})["w"] if project else free)
    model, x, y, _ = two_class()
    free = sw.attack("weight-pgd", project=False, init_noise=0.2)(model, x, y, within=box)
    assert box.contains({"weight": model.weight.detach()}, free.parameters)


def test_the_divergence_has_no_slope_without_noise():
    model, box = smooth(), sw.RelativeBox(0.1)
    params = {name: p.detach() for name, p in box.select(model).items()}
    clean = model(X.double()).log_softmax(1).detach()
    for noise in (0.0, 1e-3):
        leaves = {key: t.requires_grad_() for key, t in started(params, box, noise, True, generator(0)).items()}
        out = functional_call(model, leaves, (X.double(),)).log_softmax(1)
        (clean.exp() * (clean - out)).sum(1).mean().backward()
        largest = max(float(leaf.grad.abs().max()) for leaf in leaves.values())
        assert (largest > 1e-8) is (noise > 0)
    with pytest.raises(UsageError, match="init_noise must be above 0 for the loss 'kl'"):
        sw.attack("weight-pgd", loss="kl", init_noise=0)


def test_more_steps_do_more_harm_and_random_corners_least():
    gains = dict.fromkeys(("10", "1", "corner"), 0.0)
    model = smooth()
    for seed in range(10):
        x = torch.rand(8, 1, 8, 8, generator=generator(seed), dtype=torch.float64)
        y = torch.arange(8) % 3
        for key, attack in (
            ("10", sw.attack("weight-pgd", steps=10)),
            ("1", sw.attack("weight-pgd", steps=1)),
            ("corner", sw.attack("weight-corner", trials=1)),
        ):
            gains[key] += attack(model, x, y, within=sw.RelativeBox(0.2), seed=seed).loss.after
    assert gains["10"] >= gains["1"] - 1e-9 > gains["corner"]


def test_more_corners_and_restarts_are_no_worse():
    model, x = smooth(), X.double()
    for name, option in (("weight-corner", "trials"), ("weight-pgd", "restarts")):
        values = [
            sw.attack(name, **{option: count})(model, x, Y, within=sw.RelativeBox(0.5), seed=3).loss.after
            for count in (1, 2, 5)
        ]
        assert values == sorted(values)


def test_amp_takes_one_step_of_the_radius_along_the_gradient():
    model, x, y, _ = two_class()
    F.cross_entropy(model(x), y).backward()
    expected = model.weight.detach() + 0.001 * model.weight.grad / model.weight.grad.norm()
    found = sw.attack("weight-amp", eps=0.001)(model, x, y, within=sw.RelativeBox(1.0)).parameters["weight"]
    torch.testing.assert_close(found, expected)
    still = {"w": torch.ones(2)}
    assert torch.equal(climbed(still, {"w": torch.zeros(2)}, 0.3)["w"], still["w"])


@given(st.floats(0, 1), st.floats(1e-3, 10), st.integers(1, 4), st.integers(0, 999), st.sampled_from(NAMES))
@settings(max_examples=40)
def test_results_stay_in_their_sets(fraction, eps, steps, seed, name):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3))
    box = sw.RelativeBox(fraction, "*")
    params = {key: p.detach().clone() for key, p in box.select(model).items()}
    options = {
        "weight-pgd": {"steps": steps},
        "weight-corner": {"trials": steps},
        "weight-amp": {"eps": eps, "steps": steps},
    }
    found = sw.attack(name, **options[name])(model, X, Y, within=box, seed=seed).parameters
    for key, p in params.items():
        reach = fraction * p.double().abs() * (1 + 1e-6) + 1e-6 * p.double().abs()
        assert ((found[key].double() - p.double()).abs() <= reach).all()
    if name == "weight-amp":
        assert torch.stack([(found[key] - p).norm() for key, p in params.items()]).norm() <= eps * (1 + 1e-5)


@EVERY
def test_chunks_change_rounding_only(name):
    model = smooth()
    results = [
        sw.attack(name)(model, X.double(), Y, within=sw.RelativeBox(0.2), batch_size=size, seed=1)
        for size in (1, 4, 6, None)
    ]
    for other in results[1:]:
        for key, tensor in results[0].parameters.items():
            torch.testing.assert_close(other.parameters[key], tensor)
        torch.testing.assert_close(other.margin, results[0].margin)
        assert other.loss.after == pytest.approx(results[0].loss.after)
        assert torch.equal(other.cost.forwards, results[0].cost.forwards)


@EVERY
def test_nothing_about_the_model_changes(name):
    model = messy()
    before = snapshot(model)
    x, y = X.clone(), Y.clone()
    result = sw.attack(name, eot=2)(model, x, y, within=sw.RelativeBox(0.2), batch_size=4)
    assert snapshot(model) == before
    assert torch.equal(x, X)
    assert torch.equal(y, Y)
    assert list(result.parameters) == ["1.weight", "6.weight", "9.linear.weight"], "no batch norm, frozen weights too"
    assert not any(tensor.requires_grad for tensor in result.parameters.values())
    for tensor in result.parameters.values():
        tensor.add_(1)
    assert snapshot(model) == before, "the result owns its memory"


def test_nothing_changes_when_the_model_fails_midway():
    class Fuse(nn.Module):
        left = 4

        def forward(self, x):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("the model gave up")
            return x

    model = nn.Sequential(Fuse(), messy())
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="gave up"):
        sw.attack("weight-pgd")(model, X, Y, within=sw.RelativeBox(0.2))
    assert snapshot(model) == before


def test_dropout_and_batch_norm_are_in_evaluation_mode():
    model = messy()[:-1].append(nn.Linear(5, 3))
    results = []
    for training in (True, False):
        model.train(training)
        results.append(sw.attack("weight-pgd", steps=3)(model, X, Y, within=sw.RelativeBox(0.2)))
    assert all(torch.equal(results[0].parameters[key], results[1].parameters[key]) for key in results[0].parameters)


def test_passes_are_counted():
    model = smooth()
    calls = []
    model.register_forward_hook(lambda module, inputs, out: calls.append(len(out)))
    cost = sw.attack("weight-pgd", steps=4, restarts=2)(model, X.double(), Y, sw.RelativeBox(0.1), batch_size=3).cost
    assert cost.backwards.tolist() == [8] * 6
    assert cost.forwards.tolist() == [12] * 6, "clean, 2 x (4 + 1), and the verdict"
    probes = 3 * 2  # twice for randomness, once for the memory layout
    assert sum(calls) == 6 * 12 + probes


def test_the_same_seed_gives_the_same_result():
    model = messy()
    torch.manual_seed(1)
    first = sw.attack("weight-pgd", steps=2)(model, X, Y, within=sw.RelativeBox(0.1), seed=4)
    torch.manual_seed(2)
    again = sw.attack("weight-pgd", steps=2)(model, X, Y, within=sw.RelativeBox(0.1), seed=4)
    other = sw.attack("weight-pgd", steps=2)(model, X, Y, within=sw.RelativeBox(0.1), seed=5)
    assert torch.equal(first.parameters["6.weight"], again.parameters["6.weight"])
    assert torch.equal(first.margin, again.margin)
    assert not torch.equal(first.parameters["6.weight"], other.parameters["6.weight"])


@pytest.mark.parametrize("recompute", [False, True])
def test_spiking_models(recompute):
    model = build_model("small-cnn", (1, 8, 8), 3, spiking=Spiking(steps=3), seed=2).eval()
    for module in model.modules():
        if hasattr(module, "recompute"):
            module.recompute = recompute
    gentle, strong = (
        sw.attack("weight-pgd", steps=4, surrogate=surrogate)(model, X, Y, within=sw.RelativeBox(fraction))
        for fraction, surrogate in ((0.0, None), (0.3, "triangle"))
    )
    assert gentle.loss.after == pytest.approx(gentle.loss.before)
    assert strong.loss.after > strong.loss.before
    assert all(module.recompute is recompute for module in model.modules() if hasattr(module, "recompute"))
    if recompute:
        for module in model.modules():
            if hasattr(module, "recompute"):
                module.recompute = False
        kept = sw.attack("weight-pgd", steps=4, surrogate="triangle")(model, X, Y, within=sw.RelativeBox(0.3))
        assert all(torch.equal(kept.parameters[key], strong.parameters[key]) for key in kept.parameters)
