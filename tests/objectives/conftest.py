"""One small network with everything that an objective could disturb."""

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
