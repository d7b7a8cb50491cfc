"""Voltage-dependent plasticity: signs, sizes by hand, and what stays."""

import math

import pytest
import torch

from stalwart.core.errors import InputError, UsageError
from stalwart.spiking import vdsp


def test_signs_and_sizes_by_hand():
    weights = torch.tensor([[0.25, 0.25, 0.25], [0.5, 0.5, 0.5]])
    after = vdsp(weights, torch.tensor([-1.0, 0.0, 0.5]), torch.tensor([True, False]), rate=0.01)
    up = 0.01 * (math.e - 1) * 0.75 * math.exp(-0.5)
    down = 0.01 * (math.exp(0.5) - 1) * 0.25 * math.exp(-1.5)
    assert torch.allclose(after[0], torch.tensor([0.25 + up, 0.25, 0.25 - down]))
    assert torch.equal(after[1], weights[1])


def test_weights_stay_in_their_range():
    weights = torch.tensor([[0.0, 1.0, 0.01, 0.99]])
    after = vdsp(weights, torch.tensor([3.0, -3.0, 3.0, -3.0]), torch.tensor([True]), rate=10.0)
    assert after.min() >= 0
    assert after.max() <= 1
    assert torch.equal(after[0, :2], weights[0, :2])
    assert after[0, 2] < 0.01
    assert after[0, 3] > 0.99


def test_what_does_not_fit():
    fired = torch.tensor([True])
    with pytest.raises(InputError, match=r"need membranes \[M\]"):
        vdsp(torch.zeros(1, 2), torch.zeros(3), fired)
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        vdsp(torch.full((1, 2), 1.5), torch.zeros(2), fired)
    with pytest.raises(UsageError, match="rate"):
        vdsp(torch.zeros(1, 2), torch.zeros(2), fired, rate=0.0)
