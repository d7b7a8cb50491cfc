"""Models that are plain, masked on purpose, or random in a known way."""

import pytest
import torch
from torch import nn

from stalwart.data import load
from stalwart.models import build_model
from stalwart.stochastic import WCAHead

CLASSES = 4


def zero_to_three(part, count):
    """Return the first handwritten digits 0 to 3 of a part of the data, with their labels."""
    x, y = part.batch(slice(None))
    return x[y < CLASSES][:count], y[y < CLASSES][:count]


@pytest.fixture(scope="session")
def images():
    return zero_to_three(load("digits").test, 80)


@pytest.fixture(scope="session")
def plain():
    """Return an ordinary small network that gets the images right."""
    x, y = zero_to_three(load("digits").train, 300)
    model = build_model("mlp", (1, 8, 8), CLASSES, {"widths": (32, 16)}, seed=0)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.95
    return model.eval()


@pytest.fixture
def noisy(plain):
    """Return the plain network with learned-covariance noise on its features, large enough to matter."""
    torch.manual_seed(0)
    head = WCAHead(16, CLASSES)
    head.linear.load_state_dict(plain.head.state_dict())
    with torch.no_grad():
        head.raw_diagonal.fill_(1.5)
    model = build_model("mlp", (1, 8, 8), CLASSES, {"widths": (32, 16)}, head=lambda d, k: head)
    model.backbone.load_state_dict(plain.backbone.state_dict())
    return model.eval()


class Scaled(nn.Module):
    """The same decisions with logits so large that the softmax saturates."""

    def __init__(self, inner, scale):
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, x):
        return self.scale * self.inner(x)


class _Shatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, levels):
        return (x * levels).round() / levels

    @staticmethod
    def backward(ctx, gradient):
        # Deterministic, as large as the true gradient, and without any information about it.
        spread = torch.arange(gradient.numel(), dtype=gradient.dtype).mul(12.9898).sin().mul(43758.5453).frac()
        return spread.view(gradient.shape) * gradient.abs().mean(), None


class Shattered(nn.Module):
    """Input quantisation whose backward pass points nowhere."""

    def __init__(self, inner, levels=64):
        super().__init__()
        self.inner, self.levels = inner, levels

    def forward(self, x):
        return self.inner(_Shatter.apply(x, self.levels))


class _FlatCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits):
        return logits.clone()

    @staticmethod
    def backward(ctx, gradient):
        # The margin sends +1 and -1 to two logits; the cross entropy spreads over all, and that is turned round.
        spread = (gradient != 0).sum(1, keepdim=True) > 2
        return torch.where(spread, -gradient, gradient)


class Misleading(nn.Module):
    """Gradients that lead the cross entropy downhill and leave the margin alone."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return _FlatCrossEntropy.apply(self.inner(x))


class Company(nn.Module):
    """Logits that depend on the mean of the batch."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        logits = self.inner(x)
        return logits + 0.5 * logits.mean(0, keepdim=True)


class Lucky(nn.Module):
    """A model that is right with probability 1 - q at every input, whatever an attack does, from the global generator."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate
        self.label = nn.Linear(1, 1)  # so that there is a parameter

    def forward(self, x):
        y = (x[:, 0, 0, 0] * (CLASSES - 1)).round().long().clamp(0, CLASSES - 1)
        wrong = torch.rand(len(x)) < self.rate
        shown = torch.where(wrong, (y + 1) % CLASSES, y)
        logits = nn.functional.one_hot(shown, CLASSES).to(x.dtype)
        return logits + 0 * x.flatten(1).sum(1, keepdim=True)


MODELS = {"scaled": Scaled, "shattered": Shattered, "misleading": Misleading, "company": Company, "lucky": Lucky}


@pytest.fixture(scope="session")
def made():
    """Return the purpose-built modules by name."""
    return MODELS
