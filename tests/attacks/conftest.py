"""Models whose adversarial points are known, and models that count or misbehave."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stalwart.core.random import generator
from stalwart.models import build_model
from stalwart.stochastic import WCAHead


class Counting(nn.Module):
    """Counts the rows that go through forward and backward; ``keys`` tells which sample a row belongs to."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.forwards, self.backwards = inner, [], []

    def forward(self, x):
        logits = self.inner(x)
        self.forwards.append(len(x))
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self.backwards.append(len(gradient)))
        return logits


def pgd_by_hand(model, x, y, eps, steps, seed):
    """Return projected gradient ascent on the cross entropy from a uniform start; its iterate of largest loss."""
    z = (x + eps * (2 * torch.rand(x.shape, generator=generator(seed, "start", 0), dtype=x.dtype) - 1)).clamp(0, 1)
    best, value = z.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype)
    for _ in range(steps + 1):
        z.requires_grad_()
        loss = F.cross_entropy(model(z), y, reduction="none")
        best, value = (
            torch.where((loss > value)[:, None, None, None], z, best).detach(),
            torch.maximum(value, loss).detach(),
        )
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        z = torch.minimum(torch.maximum(z.detach() + 2.5 * eps / steps * gradient.sign(), x - eps), x + eps).clamp(0, 1)
    return best


@pytest.fixture
def slow_pgd():
    return pgd_by_hand


@pytest.fixture(scope="session")
def digits():
    """Return a small trained convolutional net with 60 images it mostly gets right, as (model, x, y)."""
    x = torch.rand(60, 1, 8, 8, generator=generator(0))
    centre = torch.rand(4, 1, 8, 8, generator=generator(1))
    y = torch.arange(60) % 4
    x = 0.5 * x + 0.5 * centre[y]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.Softplus(),
        nn.Conv2d(6, 6, 3, stride=2),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(54, 4),
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    model.eval()
    assert (model(x).argmax(1) == y).float().mean() > 0.9
    return model, x, y


@pytest.fixture
def noisy():
    """Return a stochastic classifier with 12 inputs and the labels its mean network gives them."""
    model = build_model("mlp", (1, 4, 4), 3, {"widths": (16, 8)}, head=WCAHead, seed=1)
    with torch.no_grad():
        model.head.linear.weight.mul_(4)
    x = torch.rand(12, 1, 4, 4, generator=generator(5))
    model.head.mode = "off"
    y = model(x).argmax(1)
    model.head.mode = "on"
    return model, x, y


@pytest.fixture
def counting():
    return Counting


@pytest.fixture
def linear_case():
    """Return a maker of linear classifiers with 8 inputs and the least margin z_y - max z_j over a ball that no box cuts."""

    def make(classes, seed=0, width=6):
        torch.manual_seed(seed)
        model = nn.Linear(width, classes).double()
        x = torch.randn(8, width, generator=generator(seed), dtype=torch.float64)
        logits = model(x).detach()
        y = logits.argmax(1)
        slopes = (model.weight[None] - model.weight[y][:, None]).detach()

        def worst(eps, dual):
            reach = logits - logits.gather(1, y[:, None]) + eps[:, None] * slopes.norm(p=dual, dim=2)
            return -reach.scatter(1, y[:, None], -torch.inf).amax(1)

        return model, x, y, worst

    return make
