"""Small networks: one with everything that an objective could disturb, and some that bounds are for."""

import pytest
import torch
from torch import nn

from stalwart.core.random import generator


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Dropout(0.3), nn.Flatten(),
        nn.Linear(64, 8), nn.Softplus(), nn.Linear(8, 3),
    )  # fmt: skip
    model(torch.rand(20, 1, 6, 6, generator=generator(8)))  # statistics that differ from 0 and 1
    return model


@pytest.fixture
def batch():
    x = torch.rand(8, 1, 6, 6, generator=generator(0))
    return x, torch.arange(8) % 3


@pytest.fixture
def small():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()


@pytest.fixture
def deep():
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(),
        nn.Linear(48, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip


@pytest.fixture
def points():
    return torch.rand(5, 4, generator=generator(3), dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])


@pytest.fixture
def images():
    return torch.rand(8, 1, 6, 6, generator=generator(0)), torch.arange(8) % 3
