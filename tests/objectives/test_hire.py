"""HIRE-SNN: a batch of several updates against the same written out by hand, and what it refuses."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stalwart.core.errors import UsageError
from stalwart.core.modes import evaluating
from stalwart.core.random import generator
from stalwart.models import build_model
from stalwart.models.spiking import Spiking
from stalwart.objectives import Moment, Trainee
from stalwart.objectives.hire import HIRE
from stalwart.objectives.natural import Natural
from stalwart.spiking import period

IMAGES = torch.rand(6, 1, 12, 12, generator=generator(1))
LABELS = torch.arange(6) % 4


def spiking(**options):
    return build_model("small-cnn", (1, 12, 12), 4, spiking=Spiking(steps=5, **options)).train()


def train_one_batch(model, objective, inputs):
    """Do what the training loop does, and note which inputs the network saw in training mode."""
    trainee, optimiser = Trainee(model, objective), torch.optim.SGD(model.parameters(), 0.5)
    hook = model.register_forward_pre_hook(lambda m, args: inputs.append(args[0].detach()) if m.training else None)
    moment, losses = Moment(3), []
    for part in range(objective.updates):
        optimiser.zero_grad()
        loss, correct = trainee(IMAGES, LABELS, dataclasses.replace(moment, part=part))
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    hook.remove()
    return losses, int(correct)


@pytest.mark.parametrize("gradient", ["updated", "shared"])
def test_a_batch_is_what_the_algorithm_says(gradient):
    eps, step = 0.03, 0.02
    model, seen = spiking(), []
    twin = copy.deepcopy(model)
    losses, correct = train_one_batch(model, HIRE(eps=eps, step=step, periods=3, gradient=gradient), seen)

    optimiser = torch.optim.SGD(twin.parameters(), 0.5)
    x, kept, expected = IMAGES, {}, []
    for first, last in ((0, 1), (1, 3), (3, 5)):
        leaf = x.clone().requires_grad_()
        with period(first, last, kept) as after:
            logits = twin(leaf)
        loss = F.cross_entropy(logits, LABELS)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        expected.append(float(loss.detach()))
        g = leaf.grad
        if gradient == "updated":
            fresh = x.clone().requires_grad_()
            with evaluating(twin), period(first, last, kept):
                (g,) = torch.autograd.grad(F.cross_entropy(twin(fresh), LABELS), fresh)
        assert torch.equal(seen[len(expected) - 1], x)
        x = (IMAGES + (x + step * g.sign() - IMAGES).clamp(-eps, eps)).clamp(0, 1)
        kept = after
    assert losses == pytest.approx(expected, abs=1e-6)
    assert correct == int((logits.argmax(1) == LABELS).sum())
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name
    assert not torch.equal(seen[1], IMAGES)
    assert float((seen[2] - IMAGES).abs().max()) == pytest.approx(eps, abs=1e-6)


def test_both_gradients_differ_by_the_update_alone():
    seen = {}
    for gradient in ("updated", "shared"):
        seen[gradient] = []
        train_one_batch(spiking(), HIRE(eps=0.03, periods=2, gradient=gradient), seen[gradient])
    assert torch.equal(seen["updated"][0], seen["shared"][0])
    assert not torch.equal(seen["updated"][1], seen["shared"][1])


def test_one_period_is_natural_training():
    one, other = spiking(), spiking()
    train_one_batch(one, HIRE(periods=1), [])
    train_one_batch(other, Natural(), [])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_randomised_encodings_go_on_with_the_same_draw():
    model, drawn = spiking(encoder={"name": "poisson"}), []
    model.backbone.encoder.register_forward_hook(lambda m, inputs, out: drawn.append(out.detach()))
    train_one_batch(model, HIRE(eps=1e-6, periods=2, gradient="shared"), [])
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("options", "what"),
    [({"periods": 0}, "periods must be at least 1"), ({"steps": 3}, "leave steps"), ({"eps": -1.0}, "eps must be")],
)
def test_impossible_options_are_refused(options, what):
    with pytest.raises(UsageError, match=what):
        HIRE(**options)
    with pytest.raises(UsageError, match="needs a spiking model"):
        HIRE().penalty(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="as many time steps as its 6 periods, got 5"):
        HIRE(periods=6).loss(spiking(), IMAGES, LABELS, Moment(0))
