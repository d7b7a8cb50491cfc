"""Layers made in a test start from the same weights each time."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_weights():
    torch.manual_seed(0)
