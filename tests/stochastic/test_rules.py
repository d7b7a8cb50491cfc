"""Decision rules against loops over draws."""

import torch
from torch import nn

from stalwart.core.random import generator
from stalwart.stochastic import GaussianHead, draw_logits, noise, scores
from stalwart.stochastic.rules import RULES

X = torch.randn(5, 4, generator=generator(0))


class CoinFlip(nn.Module):
    """Two equally likely answers: (2, 0) and (0, 1), in turn."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.tensor([[2.0, 0.0] if self.calls % 2 else [0.0, 1.0]]).expand(len(x), 2)


def test_mean_softmax_by_hand():
    one = torch.tensor([2.0, 0.0]).exp() / (torch.tensor(2.0).exp() + 1)
    other = torch.tensor([0.0, 1.0]).exp() / (torch.tensor(1.0).exp() + 1)
    model = CoinFlip()
    found = scores(model, X, "mean-softmax", 4).exp()
    assert model.calls == 4
    assert torch.allclose(found, ((one + other) / 2).expand(5, 2), atol=1e-6)


def test_mean_softmax_equals_the_loop_over_the_same_draws():
    model = GaussianHead(4, 3)
    with noise(model, seed=0):
        loop = torch.stack([model(X).double().softmax(-1) for _ in range(9)]).mean(0)
    with noise(model, seed=0):
        found = scores(model, X, "mean-softmax", 9)
    assert torch.allclose(found.exp().double(), loop, atol=1e-6)


def test_far_logits_do_not_underflow():
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([0.0, 500.0]))
    found = scores(model, X, "mean-softmax", 3)
    assert torch.allclose(found, torch.tensor([[-500.0, 0.0]]).expand(5, 2), atol=1e-3)


def test_the_mean_network_is_noise_off_and_single_is_one_draw():
    model = GaussianHead(4, 3)
    assert torch.equal(scores(model, X, "mean-network"), model.linear(X))
    with noise(model, seed=0):
        one = scores(model, X, "single")
    with noise(model, seed=0):
        assert torch.equal(model(X), one)
    assert RULES == ("single", "mean-softmax", "mean-network")


def test_draws_are_stacked_first():
    assert draw_logits(nn.Linear(4, 3), X, 2).shape == (2, 5, 3)
    torch.manual_seed(0)
    calls = CoinFlip()
    assert draw_logits(calls, X, 1).shape == (1, 5, 2)
    assert calls.calls == 1
