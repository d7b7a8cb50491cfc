"""Two nets that attacks judge rightly, and six that they do not: tiny, trained in a second on handwritten digits 0 to 3."""

import torch
from torch import nn
from torch.nn import functional as F

import stalwart as sw
from stalwart.data import load
from stalwart.models import build_model
from stalwart.models.spiking import Spiking
from stalwart.spiking import find_surrogate, neurons
from stalwart.stochastic import WCAHead

CLASSES = 4
EPS = 0.1


def zero_to_three(part, count):
    """Return the first digits 0 to 3 of a part of the data, with their labels."""
    x, y = part.batch(slice(None))
    return x[y < CLASSES][:count], y[y < CLASSES][:count]


def mlp(**more):
    return build_model("mlp", (1, 8, 8), CLASSES, {"widths": (32, 16)}, seed=0, **more)


def train(model, epochs=60, attacked=0.0, penalty=lambda: 0.0):
    x, y = zero_to_three(load("digits").train, 300)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        z = sw.attack("pgd", steps=5)(model.eval(), x, y, within=sw.Linf(attacked)).x_adv if attacked else x
        model.train()
        optimiser.zero_grad()
        (F.cross_entropy(model(z), y) + penalty()).backward()
        optimiser.step()
    return model.eval()


class Quantised(nn.Module):
    """Rounds its input to few levels, as a coarse JPEG does."""

    def __init__(self, levels=8):
        super().__init__()
        self.levels = levels

    def forward(self, x):
        return (x * self.levels).round() / self.levels


class OutsideTorch(Quantised):
    """The same by numpy, so that autograd sees nothing."""

    def forward(self, x):
        return torch.from_numpy((x.detach().numpy() * self.levels).round() / self.levels)


class Scaled(nn.Module):
    def __init__(self, inner, scale=1e4):
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, x):
        return self.scale * self.inner(x)


class ResetsItsMode(nn.Module):
    """Turns its dropout on at every call."""

    def __init__(self, inner, rate=0.3):
        super().__init__()
        self.inner, self.dropout = inner, nn.Dropout(rate)

    def forward(self, x):
        self.dropout.train()
        return self.inner(self.dropout(x))


class AlwaysDrops(nn.Module):
    """Calls dropout as a function and forgets to tell it the mode."""

    def __init__(self, inner, rate=0.3):
        super().__init__()
        self.inner, self.rate = inner, rate

    def forward(self, x):
        return self.inner(F.dropout(x, self.rate))


def noise_alone():
    """A defence by noise of learned covariance, without an adversarial example in training."""
    model = mlp(head=lambda features, classes: WCAHead(features, classes, "diagonal"))

    def penalty():
        return 1e-3 * sum(one.square().sum() for one in model.head.parameters()) - model.head.alignment()

    return train(model, 400, penalty=penalty)


def batch_statistics():
    """A net with batch normalisation that keeps no running statistics."""
    torch.manual_seed(0)
    return train(
        nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(),
            nn.Flatten(), nn.Linear(128, CLASSES),
        )
    )  # fmt: skip


def sharp_spikes():
    """A spiking net whose surrogate is too narrow to carry a gradient."""
    model = train(mlp(spiking=Spiking(steps=4)))
    for layer in neurons(model).values():
        layer.choose(find_surrogate({"name": "triangle", "gamma": 0.05}), "bptt")
    return model
