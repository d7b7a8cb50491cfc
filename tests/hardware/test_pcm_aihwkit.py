"""Cells of phase-change memory beside IBM's analog hardware kit, whose noise model alone is loaded: it is plain Python."""

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch

from stalwart.core.random import generator, isolated
from stalwart.hardware import PCM
from stalwart.hardware.pcm import _noisy

COUNT = 100_000
TIMES = (25.0, 3600.0, 86400.0, 30 * 86400.0, 365 * 86400.0)


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """Return aihwkit's PCMLikeNoiseModel(), without the compiled simulator that importing the package would load."""
    found = importlib.util.find_spec("aihwkit")
    if found is None or not found.submodule_search_locations:
        pytest.skip("aihwkit is not installed; its folder on PYTHONPATH is enough, compiled or not")
    root = Path(next(iter(found.submodule_search_locations)))
    before = set(sys.modules)
    for name in ("", "inference", "inference.noise", "inference.converter"):
        package = types.ModuleType(f"aihwkit.{name}".rstrip("."))
        package.__path__ = [str(root / name.replace(".", "/"))]
        sys.modules[package.__name__] = package
    try:
        yield importlib.import_module("aihwkit.inference.noise.pcm").PCMLikeNoiseModel()
    finally:
        for name in set(sys.modules) - before:
            if name.split(".")[0] == "aihwkit":
                del sys.modules[name]


def ours(g, seconds):
    """Return programmed, drifted and read conductances of cells with target g, as shares of g_max."""
    weight = torch.full((1, COUNT + 1), g)
    weight[0, 0] = 1.0  # fixes the scale
    programmed, pairs = (
        PCM(seconds, compensate=False, drift=drift)._program(weight, generator(0, "cells")) for drift in (False, True)
    )
    read = _noisy(pairs.cells, pairs.noise, generator(0, "read"))
    return tuple(cells[0, 0, 1:] for cells in (programmed.cells, pairs.cells, read))


def theirs(peer, g, seconds):
    """Return the same of the peer, whose clock starts ``t_0`` after programming as ours does."""
    target = torch.full((COUNT,), g * peer.g_max)
    with isolated(1):
        programmed = peer.apply_programming_noise_to_conductance(target.clone())
        exponents = peer.generate_drift_coefficients(target)
        read = peer.apply_drift_noise_to_conductance(programmed, exponents, seconds)
    drifted = programmed * ((seconds + peer.t_0) / peer.t_0) ** -exponents
    return programmed / peer.g_max, drifted / peer.g_max, read / peer.g_max


@pytest.mark.parametrize("seconds", TIMES)
@pytest.mark.parametrize("g", [0.02, 0.05, 0.1, 0.3, 0.6, 1.0])
def test_conductances_have_the_same_mean_and_spread(peer, g, seconds):
    for own, other in zip(ours(g, seconds), theirs(peer, g, seconds), strict=True):
        assert float(own.mean()) == pytest.approx(float(other.mean()), rel=0.02)
        assert float(own.std()) == pytest.approx(float(other.std()), rel=0.02)
