"""Attacks on randomised models: expectation over transformation, no lucky draws, transfer from the mean network."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import stalwart as sw
from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.core.random import derive, generator
from stalwart.stochastic import inject, noise


class Lucky(nn.Module):
    """Wrong on one call in three, whatever the input: an attacker who believes one draw thinks he has won."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.rows = []

    def forward(self, x):
        self.calls += 1
        self.rows.append(len(x))
        sign = -1.0 if self.calls % 3 == 0 else 1.0
        margin = sign * (5.0 + 0.01 * self.calls + 0.01 * x.flatten(1).sum(1))
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def test_one_lucky_draw_proves_nothing():
    model = Lucky()
    x = torch.rand(4, 3, generator=generator(0))
    result = sw.attack("pgd", steps=9, restarts=2)(model, x, torch.zeros(4, dtype=torch.long), within=sw.Linf(0.1))
    assert not result.success.any()
    assert (result.cost.backwards == 18).all()
    assert set(model.rows) == {1, 2, 4}, "probes have one and two rows; after that nothing leaves the batch"


def test_success_is_the_verdict_of_the_mean_softmax_of_fresh_draws(noisy):
    model, x, y = noisy
    with torch.no_grad():  # noise that blurs the decision without drowning it
        model.head.raw_diagonal.fill_(-2.0)
        model.head.lower.zero_()
        model.backbone[-2].weight.mul_(3)
    with noise(model, "off"):
        y = model(x).argmax(1)
    within = sw.Linf(torch.linspace(0, 0.6, 12))
    result = sw.attack("pgd", eot=10)(model, x, y, within=within)
    assert torch.equal(result.success, result.margin <= 0)
    assert 0 < result.success.sum() < 12
    with noise(model, seed=99), torch.no_grad():
        mean = torch.stack([model(result.x_adv).softmax(1) for _ in range(4000)]).mean(0)
    own = mean.gather(1, y[:, None])[:, 0]
    exact = own.log() - mean.scatter(1, y[:, None], 0.0).amax(1).log()
    assert (result.margin - exact).abs().max() < 0.5
    clear = exact.abs() > 0.5
    assert clear.any()
    assert torch.equal(result.success[clear], exact[clear] < 0)


def gradients(model, x, y, eot, repeats, average="loss"):
    found = []
    with noise(model, seed=0):
        for _ in range(repeats):
            oracle = Oracle(model, x, eot, average)
            found.append(oracle.gradient(x, Goal("ce", y), torch.arange(len(x)))[2])
    return torch.stack(found)


@pytest.mark.parametrize("average", ["loss", "logits", "softmax"])
def test_the_variance_of_the_gradient_falls_with_the_draws(noisy, average):
    model, x, y = noisy
    spread = [gradients(model, x, y, eot, 120, average).var(0).mean() for eot in (1, 4, 16)]
    assert spread[0] > 1.5 * spread[1] > 1.5 * 1.5 * spread[2]
    if average == "loss":
        assert float(spread[0] / spread[2]) == pytest.approx(16, rel=0.4)


def test_the_gradient_is_that_of_what_is_averaged(noisy):
    model, x, y = noisy
    for average in ("loss", "logits", "softmax"):
        with noise(model, seed=3):
            oracle = Oracle(model, x, 5, average)
            value, _, gradient = oracle.gradient(x, Goal("ce", y), torch.arange(12))
        z = x.clone().requires_grad_()
        with noise(model, seed=3):
            model(x[:2])  # the oracle's probe
            logits = model.draw(z, 5)
        if average == "loss":
            by_hand = sum(F.cross_entropy(one, y, reduction="none") for one in logits) / 5
        elif average == "logits":
            by_hand = F.cross_entropy(sum(logits) / 5, y, reduction="none")
        else:
            by_hand = -(sum(one.softmax(1) for one in logits) / 5).gather(1, y[:, None])[:, 0].log()
        (expected,) = torch.autograd.grad(by_hand.sum(), z)
        assert torch.allclose(value, by_hand.detach(), atol=1e-5)
        assert torch.allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("average", ["loss", "logits", "softmax"])
def test_the_kept_iterate_is_the_best_by_the_same_average(average):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            # The margin is lowest at 0.6; the draws differ by a large constant.
            margin = 4 * (x[:, 0] - 0.6).square() + (30.0 if self.calls % 2 else -10.0)
            return torch.stack([margin, torch.zeros_like(margin)], 1)

    x = torch.tensor([[0.5], [0.45]], dtype=torch.float64)
    attack = sw.attack("bim", steps=2, step=0.09, eot=10, average=average)
    result = attack(Two(), x, torch.tensor([0, 0]), within=sw.Linf(0.4))
    assert torch.allclose(result.x_adv[:, 0], torch.tensor([0.59, 0.63]).double(), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fgsm", {}),
        ("bim", {"steps": 2}),
        ("pgd", {"steps": 2, "restarts": 2}),
        ("apgd", {"steps": 5, "loss": "targeted-margin"}),
        ("rfgsm", {"share": 0.3}),
        ("square", {"queries": 5}),
        ("noise", {"trials": 2}),
        ("transfer", {"options": {"steps": 2}}),
        ("transfer", {"attack": "fgsm"}),
    ],
)
def test_eot_works_with_every_attack(noisy, name, options):
    model, x, y = noisy
    within = sw.Linf(0.05)
    result = sw.attack(name, eot=5, average="softmax", **options)(model, x, y, within=within)
    assert within.contains(x, result.x_adv).all()
    again = sw.attack(name, eot=5, average="softmax", **options)(model, x, y, within=within)
    assert torch.equal(result.x_adv, again.x_adv)


def test_many_draws_on_a_cheap_model_cost_one_pass_a_step(noisy):
    model, x, y = noisy
    result = sw.attack("pgd", steps=6, eot=50)(model, x, y, within=sw.Linf(0.05))
    assert (result.cost.backwards == 6).all()
    assert result.cost.forwards[2:].tolist() == [6 + 1 + 1] * 10  # six steps, the last iterate, the verdict


def test_noise_on_weights_is_attacked_by_whole_passes(digits):
    plain, x, y = digits
    model = inject(copy.deepcopy(plain))
    result = sw.attack("pgd", steps=3, eot=4)(model, x[:5], y[:5], within=sw.Linf(0.05))
    assert (result.cost.backwards == 12).all()


def test_transfer_with_noise_off_is_the_attack_on_the_mean_network(noisy, slow_pgd):
    model, x, y = noisy
    model, x = model.double(), x.double()
    mean_network = nn.Sequential(model.normalise, model.backbone, model.head.linear)
    result = sw.attack("transfer", options={"steps": 8})(model, x, y, within=sw.Linf(0.08), seed=2)
    assert torch.allclose(result.x_adv, slow_pgd(mean_network, x, y, 0.08, 8, derive(2, "chunk", 0)), atol=1e-9)
    named = sw.attack("transfer", source=mean_network, options={"steps": 8})(model, x, y, within=sw.Linf(0.08), seed=2)
    assert torch.equal(named.x_adv, result.x_adv)
    on_mean_network = mean_network(result.x_adv).detach()
    own = on_mean_network.gather(1, y[:, None])[:, 0]
    assert not torch.allclose(result.margin, own - on_mean_network.scatter(1, y[:, None], -torch.inf).amax(1))


def test_transfer_from_another_model_climbs_on_that_model_and_is_judged_by_the_target(digits, slow_pgd):
    target, x, y = digits
    target, x = copy.deepcopy(target).double(), x.double()
    source = copy.deepcopy(target)
    with torch.no_grad():
        for p in source.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator(3)))
    within = sw.Linf(0.08)
    transferred = sw.attack("transfer", source=source, options={"steps": 8})(target, x, y, within=within, seed=2)
    # Nothing stops behind the source's border: the plain loop over all steps is the twin, broken samples included.
    assert torch.allclose(transferred.x_adv, slow_pgd(source, x, y, 0.08, 8, derive(2, "chunk", 0)), atol=1e-9)
    assert (transferred.cost.backwards == 8).all()
    assert torch.equal(transferred.success, target(transferred.x_adv).argmax(1) != y)
    white_box = sw.attack("pgd", steps=8)(target, x, y, within=within, seed=2)
    assert white_box.success.sum() >= transferred.success.sum() > (target(x).argmax(1) != y).sum()


def test_fixed_noise_is_attacked_as_a_deterministic_model(noisy):
    model, x, _ = noisy
    with noise(model, "fixed", seed=0):
        assert not Oracle(model, x).randomised
    with noise(model, "off"):
        assert not Oracle(model, x).randomised
    assert Oracle(model, x).randomised


def test_randomness_from_torchs_global_generator_is_seen_and_seeded(digits):
    plain, x, y = digits

    class Dithered(nn.Module):
        def forward(self, x):
            return plain(x + 0.05 * torch.randn_like(x))

    model = Dithered()
    assert Oracle(model, x).randomised
    first, second = (sw.attack("pgd", steps=3)(model, x, y, within=sw.Linf(0.03), seed=5) for _ in range(2))
    assert torch.equal(first.x_adv, second.x_adv)
    assert torch.equal(first.margin, second.margin)


def test_draws_of_whole_passes_are_averaged_one_graph_at_a_time(digits):
    """The gradient averaged draw by draw is the gradient of the mean loss over the same draws."""
    model, x, y = digits
    noisy = inject(copy.deepcopy(model))
    goal, everyone = Goal("ce", y), torch.arange(len(x))
    gradients = []
    for average in ("loss", "reference"):
        oracle = Oracle(noisy, x, 4, "loss")
        with noise(noisy, "on", seed=6):
            if average == "loss":
                value, _, gradient = oracle.gradient(x, goal, everyone)
            else:
                z = x.clone().requires_grad_()
                value = torch.stack([goal(noisy(z)) for _ in range(4)]).mean(0)
                (gradient,) = torch.autograd.grad(value.sum(), z)
        gradients.append((value.detach(), gradient))
    (value, gradient), (value_reference, reference) = gradients
    assert torch.allclose(value, value_reference, atol=1e-5)
    assert torch.allclose(gradient, reference, atol=1e-5)
