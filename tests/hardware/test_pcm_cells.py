"""Phase-change memory: each effect against its formula, the switches, the compensation."""

import math

import pytest
import torch
from chip_networks import assert_same, cnn, images, snapshot
from torch import nn

from stalwart.core.errors import UsageError
from stalwart.core.random import generator
from stalwart.hardware import PCM, Mismatch, OutputNoise, Quantise
from stalwart.hardware.pcm import drift_exponent, programming_std, read_std
from stalwart.spiking import LIF

DOUBLE = torch.float64
QUIET = {"programming": False, "drift": False, "read": False, "compensate": False}


class Rates(nn.Module):
    """Firing rates of leaky neurons behind a matrix."""

    def __init__(self):
        super().__init__()
        self.fc, self.neurons = nn.Linear(20, 50, bias=False), LIF(0.9, 1.0)
        nn.init.uniform_(self.fc.weight, 0.0, 0.06).requires_grad_(False)

    def forward(self, x):
        current, membrane, spikes = self.fc(x), None, []
        for _ in range(20):
            spike, membrane = self.neurons.one_step(current, membrane)
            spikes.append(spike)
        return torch.stack(spikes).mean(0)


def held(fault, weight, seed=0):
    return fault.apply({"fc.weight": weight}, generator(seed))["fc.weight"]


def block(value, count=40_000):
    """Return many weights of one value, and one of 1 that fixes the scale."""
    weight = torch.full((count // 200, 200), value, dtype=DOUBLE)
    weight[0, 0] = 1.0
    return weight


def test_programming_std_is_in_microsiemens():
    g = torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)
    expected = torch.tensor([0.2635, -1.1731 / 4 + 1.9650 / 2 + 0.2635, 1.0554], dtype=DOUBLE) / 25
    torch.testing.assert_close(programming_std(g), expected)
    assert round(float(programming_std(g)[2]), 4) == 0.0422
    assert float(programming_std(torch.linspace(0, 1, 1001)).max()) < 0.0435  # its peak, at 4.3 % of g_max
    # A device with half the range has the same noise in microsiemens for the same conductance.
    torch.testing.assert_close(programming_std(g, 12.5) * 12.5, programming_std(g / 2) * 25)


def test_exponents_and_read_noise_by_hand():
    mean, std = drift_exponent(torch.tensor([0.0, 0.01, 0.1, 1.0], dtype=DOUBLE))
    expected = [0.1, 0.0155 * math.log(100) + 0.0244, -0.0155 * math.log(0.1) + 0.0244, 0.049]
    torch.testing.assert_close(mean, torch.tensor(expected, dtype=DOUBLE))
    expected = [0.045, 0.045, 0.0125 * math.log(10) - 0.0059, 0.008]
    torch.testing.assert_close(std, torch.tensor(expected, dtype=DOUBLE))
    noise = read_std(torch.tensor([0.0, 0.001, 1.0], dtype=DOUBLE), 25.0) / math.sqrt(math.log(25 / 5e-7 + 0.5))
    torch.testing.assert_close(noise, torch.tensor([0.2, 0.2, 0.0088], dtype=DOUBLE))
    assert read_std(torch.ones(1), 0.0).tolist() == [0.0]


def test_programming_noise_has_its_std_and_lies_on_both_cells():
    fault = PCM(**{**QUIET, "programming": True})
    for value in (0.9, 0.5):
        weight = block(value)
        moved = (held(fault, weight) - weight).flatten()[1:]
        # The cell that should be 0 has noise too, of which the positive half is kept.
        own, other = float(programming_std(torch.tensor(value))), float(programming_std(torch.tensor(0.0)))
        half = other**2 * (0.5 - 1 / (2 * math.pi))
        assert abs(float(moved.std()) / math.sqrt(own**2 + half) - 1) < 0.02
        assert abs(float(moved.mean()) + other / math.sqrt(2 * math.pi)) < 5 * own / 200
    zero = held(fault, block(0.0)).flatten()[1:]
    assert abs(float(zero.std()) / (other * math.sqrt(2 * (0.5 - 1 / (2 * math.pi)))) - 1) < 0.03
    flipped = held(fault, -block(0.5))
    assert float(flipped.median()) < -0.4


def test_drift_follows_the_power_law_of_each_cell():
    weight = block(0.5)
    day = held(PCM(86_400.0, **{**QUIET, "drift": True}), weight).flatten()[1:]
    nu = -(day / 0.5).log() / math.log((86_400 + 20) / 20)
    mean, std = drift_exponent(torch.tensor(0.5))
    assert abs(float(nu.mean()) / float(mean) - 1) < 0.01
    assert abs(float(nu.std()) / float(std) - 1) < 0.02
    constant = held(PCM(86_400.0, exponent=0.05, **{**QUIET, "drift": True}), weight)
    torch.testing.assert_close(constant, weight * (86_420 / 20) ** -0.05)
    torch.testing.assert_close(held(PCM(0.0, **{**QUIET, "drift": True}), weight), weight)


def test_what_drifts_is_what_was_programmed():
    weight = torch.randn(20, 30, generator=generator(0), dtype=DOUBLE)
    written = held(PCM(**{**QUIET, "programming": True}), weight)
    later = held(PCM(86_400.0, exponent=0.05, **{**QUIET, "programming": True, "drift": True}), weight)
    torch.testing.assert_close(later, written * (86_420 / 20) ** -0.05)
    # With its compensation the chip is as it was programmed, not as it was designed.
    restored = PCM(86_400.0, exponent=0.05, **{**QUIET, "programming": True, "drift": True, "compensate": True})
    torch.testing.assert_close(held(restored, weight), written)


def test_read_noise_has_its_std():
    weight = block(0.5)
    moved = (held(PCM(3600.0, **{**QUIET, "read": True}), weight) / weight - 1).flatten()[1:]
    assert abs(float(moved.std()) / float(read_std(torch.tensor(0.5), 3600.0)) - 1) < 0.02


@pytest.mark.parametrize("shape", [(3, 600), (300, 7), (20, 3, 4, 4), (50,)])
def test_everything_off_gives_the_weights_back(shape):
    weight = torch.randn(shape, generator=generator(0), dtype=DOUBLE)
    for compensate in (False, True):
        fault = PCM(**{**QUIET, "compensate": compensate}, only="fc.weight")
        torch.testing.assert_close(held(fault, weight), weight, rtol=1e-12, atol=0)


def test_compensation_undoes_drift_that_is_the_same_everywhere():
    model, x = cnn().double().requires_grad_(False), images().double()
    clean = model(x)
    with PCM(31_536_000.0, exponent=0.06, programming=False, read=False).chip(model, 0):
        assert float((model(x) - clean).abs().max()) < 1e-6
    with PCM(31_536_000.0, exponent=0.06, programming=False, read=False, compensate=False).chip(model, 0):
        assert float((model(x) - clean).abs().max()) > 1e-2


def test_each_tile_has_its_own_compensation():
    weight = torch.rand(4, 6, generator=generator(0), dtype=DOUBLE) - 0.5
    raw = held(PCM(1e6, programming=False, read=False, compensate=False), weight)
    tiled = held(PCM(1e6, programming=False, read=False, tile=2), weight)
    for top in (0, 2):
        for left in (0, 2, 4):
            cut = slice(top, top + 2), slice(left, left + 2)
            # One-hot inputs bring out a tile's columns.
            probe = torch.eye(2, dtype=DOUBLE)
            alpha = (weight[cut] @ probe).abs().mean() / (raw[cut] @ probe).abs().mean()
            torch.testing.assert_close(tiled[cut], alpha * raw[cut])


def test_compensation_is_decisive_for_spiking_thresholds():
    model = Rates()
    x = torch.rand(8, 20, generator=generator(0))
    clean = float(model(x).mean())
    rates = {}
    for compensate in (True, False):
        with PCM(2_592_000.0, compensate=compensate).chip(model, 0):
            rates[compensate] = float(model(x).mean())
    assert abs(rates[True] / clean - 1) < 0.1
    assert rates[False] < 0.7 * clean


def test_cells_are_frozen_and_reads_are_not():
    model = cnn()
    before = snapshot(model)
    device = PCM(3600.0)
    chip = device.chip(model, 0)
    reads = []
    with chip:
        for _ in range(300):
            model(images(1))
            reads.append(model[4].weight.detach().clone())
    assert_same(before, snapshot(model))
    reads = torch.stack(reads)
    assert float(reads.std(0).mean()) > 0
    largest = float(model[4].weight.detach().abs().max())
    assert float((reads.mean(0) - chip.parameters["4.weight"]).abs().max()) < 0.02 * largest
    assert torch.equal(device.chip(model, 0).parameters["4.weight"], chip.parameters["4.weight"])
    assert set(chip.parameters) == {"0.weight", "4.weight", "6.weight"}  # biases are digital
    assert chip.unmoved() == []


def test_zero_weights_and_single_precision():
    assert torch.equal(held(PCM(**QUIET), torch.zeros(2, 3)), torch.zeros(2, 3))
    assert held(PCM(), torch.zeros(2, 3)).isfinite().all()
    assert held(PCM(), torch.randn(2, 3)).dtype == torch.float32


def test_order_errors_and_description():
    assert len((Quantise(8) | Mismatch(0.1) | PCM() | OutputNoise(0.1)).faults) == 4
    with pytest.raises(UsageError, match="'program', before PCM at stage 'read'"):
        PCM() | Mismatch(0.1)
    with pytest.raises(UsageError, match="'program', before PCM at stage 'drift'"):
        PCM(read=False) | Mismatch(0.1)
    for options, says in (
        ({"seconds": -1.0}, "at least 0"),
        ({"g_max": 0.0}, "microsiemens"),
        ({"t0": 0.0}, "t0 must be positive"),
        ({"exponent": -0.1}, "exponent must"),
        ({"tile": 0}, "at least 1"),
    ):
        with pytest.raises(UsageError, match=says):
            PCM(**options)
    assert PCM(read=False).describe() == (
        "PCM 25 s after programming, g_max 25 µS: programming noise, drift (standard deviations of conductances), with "
        "global drift compensation, on weight matrices"
    )
