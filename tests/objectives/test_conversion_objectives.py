"""Robust fine-tuning, A3T and AdvLC: their crafted inputs and losses by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import stalwart as sw
from stalwart.attacks.losses import kl_divergence
from stalwart.core.errors import UsageError
from stalwart.core.random import generator, normal
from stalwart.core.registry import build
from stalwart.objectives import OBJECTIVES, Moment, Trainee
from stalwart.spiking import neurons

X = torch.rand(6, 5, generator=generator(1)) * 0.8 + 0.1
Y = torch.tensor([0, 1, 2, 0, 1, 2])
MOMENT = Moment(seed=3)


def make(name, **options):
    return build("objective", OBJECTIVES, name, options)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)).double()


def test_the_attack_of_robust_fine_tuning_is_one_random_and_one_gradient_step(small):
    x, eps, share = X.double(), 0.05, 0.4
    objective = make("robust-finetune", eps=eps, share=share)
    found = objective.craft(small, x, Y, MOMENT)
    away = normal(x.shape, MOMENT.generator(x, "start"), x)
    start = (x + share * eps * away.sign()).clamp(0, 1).requires_grad_()
    clean = small(x).log_softmax(-1).detach()
    kl_divergence(clean, small(start).log_softmax(-1)).sum().backward()
    wanted = (start.detach() + (1 - share) * eps * start.grad.sign()).clamp(0, 1)
    wanted = torch.maximum(torch.minimum(wanted, x + eps), x - eps)
    assert torch.allclose(found, wanted, atol=1e-9)
    loss, logits = objective.loss(small, x, Y, MOMENT)
    by_hand = (
        F.cross_entropy(small(x), Y)
        + 2.0 * kl_divergence(small(x).log_softmax(-1), small(found).log_softmax(-1)).mean()
    )
    assert float(loss.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-9)
    assert torch.equal(logits, small(x))


def test_a3t_is_adversarial_training_where_the_network_is_right(small):
    right = small(X.double()).argmax(1)
    options = {"eps": 0.05, "steps": 4}
    a, b = make("a3t", **options), make("pgd-at", **options)
    assert torch.equal(a.craft(small, X.double(), right, MOMENT), b.craft(small, X.double(), right, MOMENT))
    wrong = (right + 1) % 3
    ours = a.craft(small, X.double(), wrong, MOMENT)
    assert torch.equal(ours, a.craft(small, X.double(), right, MOMENT)), "labels do not steer the attack"
    assert not torch.equal(ours, b.craft(small, X.double(), wrong, MOMENT))
    loss, _ = a.loss(small, X.double(), wrong, MOMENT)
    assert float(loss.detach()) == pytest.approx(float(F.cross_entropy(small(ours), wrong).detach()), rel=1e-9)


def test_advlc_adds_the_largest_tenth_of_the_moves(small):
    objective = make("adv-lc", eps=0.05, steps=3, weight=0.7, share=0.1)
    x_adv = objective.craft(small, X.double(), Y, MOMENT)
    loss, _ = objective.combine(small, X.double(), x_adv, Y)
    moved = (small(X.double()) - small(x_adv)).abs().flatten().sort(descending=True).values
    wanted = F.cross_entropy(small(x_adv), Y) + 0.7 * moved[:2].sum() / 6  # a tenth of 18 entries
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)


def test_bad_options_are_refused():
    for name, options in (
        ("robust-finetune", {"steps": 2}),
        ("robust-finetune", {"share": 1.0}),
        ("robust-finetune", {"step": 0.1}),
        ("adv-lc", {"share": 0.0}),
        ("adv-lc", {"weight": -1.0}),
        ("adv-lc", {"clean_weight": 0.5}),
    ):
        with pytest.raises(UsageError):
            make(name, **options)


def test_weights_and_thresholds_are_trained_together():
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).eval()
    network = sw.convert(ann, X, steps=4, method="robust", balancing_steps=10, batch=6)
    trainee = Trainee(network.train(), make("robust-finetune", eps=0.05))
    loss, _ = trainee(X, Y, MOMENT)
    loss.backward()
    (layer,) = neurons(network).values()
    assert layer.threshold.grad is not None
    assert float(layer.threshold.grad) != 0
    assert float(network.layers[0].weight.grad.abs().max()) > 0
    assert not torch.equal(network.layers[1].running_mean, torch.zeros(16)), "batch norm learns its statistics anew"
