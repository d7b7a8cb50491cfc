"""Small networks for the tests of device models."""

import copy

import torch
from torch import nn

from stalwart.core.random import generator


def images(count=16, seed=3):
    return torch.rand(count, 1, 6, 6, generator=generator(seed))


def cnn(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)
        ).eval()


class Tied(nn.Module):
    """Two linear layers that share their weights."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).relu())


def snapshot(model):
    """Return everything that must be as before: objects, bits, what needs gradients."""
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    return (
        {name: id(tensor) for name, tensor in tensors.items()},
        copy.deepcopy({name: tensor.detach() for name, tensor in tensors.items()}),
        {name: tensor.requires_grad for name, tensor in tensors.items()},
        {name: tensor._version for name, tensor in model.named_parameters()},
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
    )


def assert_same(before, after):
    assert before[0] == after[0]
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])
    assert before[2:] == after[2:]
