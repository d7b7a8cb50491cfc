"""Quantised weights, and bits that flip in them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stalwart.core.errors import UsageError
from stalwart.core.random import generator
from stalwart.hardware import BitFlips, Mismatch, Quantise
from stalwart.hardware.codes import unsigned


def weights(seed=0, shape=(8, 5), dtype=torch.float32):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def applied(fault, tensor, seed=0):
    return fault.apply({"fc.weight": tensor}, generator(seed))["fc.weight"]


@given(
    bits=st.integers(2, 16),
    per=st.sampled_from(["tensor", "channel"]),
    symmetric=st.booleans(),
    seed=st.integers(0, 10**6),
    scale=st.floats(1e-6, 1e6),
    shift=st.floats(-3, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_quantise_errs_by_half_a_step_at_most(bits, per, symmetric, seed, scale, shift, dtype):
    tensor = (weights(seed, (4, 3, 2, 2), dtype) + shift) * scale
    values = applied(Quantise(bits, per, symmetric), tensor).double()
    wide = tensor.double()
    rows = wide.flatten(1) if per == "channel" else wide.reshape(1, -1)
    if symmetric:
        step = rows.abs().amax(1) / (2 ** (bits - 1) - 1)
    else:
        step = (rows.amax(1) - rows.amin(1)) / (2**bits - 1)
    error = (values - wide).reshape(rows.shape).abs().amax(1)
    assert bool((error <= step / 2 + torch.finfo(dtype).eps * rows.abs().amax(1)).all())
    for row in values.reshape(rows.shape):
        assert len(row.unique()) <= 2**bits


def test_quantise_by_hand():
    tensor = torch.tensor([[1.0, -0.4], [0.2, 0.1]])
    assert applied(Quantise(2), tensor).tolist() == [[1.0, 0.0], [0.0, 0.0]]
    torch.testing.assert_close(applied(Quantise(2, "channel"), tensor), torch.tensor([[1.0, 0.0], [0.2, 0.0]]))
    # Half a step from both neighbours, 0.1 rounds to the even code, 0.
    asymmetric = applied(Quantise(2, symmetric=False), torch.tensor([[0.0, 0.3, 1.0, 0.9]]))
    torch.testing.assert_close(asymmetric, torch.tensor([[0.0, 1 / 3, 1.0, 1.0]]))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_quantise_keeps_its_own_values_and_constants(symmetric, per):
    fault = Quantise(4, per, symmetric)
    once = applied(fault, weights())
    assert torch.equal(applied(fault, once), once)
    constant = torch.full((2, 3), 0.7)
    torch.testing.assert_close(applied(fault, constant), constant)
    assert torch.equal(applied(fault, torch.zeros(2, 3)), torch.zeros(2, 3))


def test_quantise_leaves_biases_by_default_and_vectors_have_one_range():
    params = {"fc.weight": weights(), "fc.bias": weights(shape=(8,))}
    assert Quantise(3).apply(params, generator(0))["fc.bias"] is params["fc.bias"]
    both = Quantise(3, "channel", only="fc.*").apply(params, generator(0))
    assert not torch.equal(both["fc.bias"], params["fc.bias"])


@pytest.mark.parametrize("bits", [1, 0, 17])
def test_bits_out_of_range(bits):
    with pytest.raises(UsageError, match="2 to 16 bits"):
        Quantise(bits)


def count(mask):
    return sum(int(((mask >> bit) & 1).sum()) for bit in range(16))


@given(rate=st.floats(0.0, 1.0), seed=st.integers(0, 10**6), bits=st.integers(1, 12))
def test_flips_are_as_many_as_their_rate_says(rate, seed, bits):
    tensor = weights(shape=(100, 50))
    found, total = count(BitFlips(rate, bits).mask(tensor, generator(seed))), 5000 * bits
    assert abs(found - rate * total) <= 4.5 * (total * rate * (1 - rate)) ** 0.5 + 1


def test_flips_are_as_many_as_their_rate_says_within_three_sigma():
    tensor = weights(shape=(500, 200))
    for rate in (1e-3, 1e-2, 0.05):
        found, total = count(BitFlips(rate).mask(tensor, generator(1))), 800_000
        assert abs(found - rate * total) < 3 * (total * rate * (1 - rate)) ** 0.5


@given(low=st.floats(0.0, 1.0), high=st.floats(0.0, 1.0), seed=st.integers(0, 10**6))
def test_flips_are_nested_in_the_rate(low, high, seed):
    low, high = sorted((low, high))
    fewer = BitFlips(low).mask(weights(), generator(seed))
    more = BitFlips(high).mask(weights(), generator(seed))
    assert torch.equal(fewer & more, fewer)


def test_flips_are_nested_in_a_chip_even_behind_other_faults():
    model = torch.nn.Linear(50, 40)
    clean = Quantise(8, symmetric=False).chip(model, 5).parameters["weight"]
    codes = unsigned(clean, 8).code

    def flipped(device):
        # The flips of a chip's weights, read off its codes on the grid of the clean ones.
        values = device.chip(model, 5).parameters["weight"].double()
        low, high = clean.double().min(), clean.double().max()
        return ((values - low) / ((high - low) / 255)).round().long() ^ codes

    alone = flipped(BitFlips(0.01))
    behind = flipped(Quantise(8, symmetric=False) | BitFlips(0.01))
    more = flipped(BitFlips(0.1))
    assert count(alone) > 0
    assert torch.equal(alone, behind)
    assert torch.equal(alone & more, alone)


def test_extreme_rates():
    tensor = weights()
    # Rounded like Quantise; and with every bit flipped, the codes are counted from the other end.
    assert torch.equal(applied(BitFlips(0.0), tensor), applied(Quantise(8, symmetric=False), tensor))
    codes = unsigned(tensor, 8).code
    assert torch.equal(unsigned(applied(BitFlips(1.0), tensor), 8).code, 255 - codes)


@pytest.mark.parametrize("position", [0, 3, 7])
def test_one_position_moves_codes_by_its_weight(position):
    tensor = weights(dtype=torch.float64)
    step = float(tensor.max() - tensor.min()) / 255
    moved = (applied(BitFlips(1.0, position=position), tensor) - applied(BitFlips(0.0), tensor)).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, step * 2**position))
    whole, part = (BitFlips(0.3, position=one).mask(tensor, generator(0)) for one in (None, position))
    assert torch.equal(part, whole & (1 << position))


def test_errors_and_descriptions():
    with pytest.raises(UsageError, match="For 5 % write 0.05"):
        BitFlips(5.0)
    with pytest.raises(UsageError, match="0 to 7 for codes of 8 bits, got 8"):
        BitFlips(0.1, position=8)
    with pytest.raises(UsageError, match="1 to 16"):
        BitFlips(0.1, bits=0)
    with pytest.raises(UsageError, match="'quantise', before Mismatch"):
        Mismatch(0.1) | Quantise(8)
    assert "0.1 % of the bits of 8-bit codes flipped, frozen in each chip" in BitFlips(1e-3).describe()
    assert "at position 7 (0 is the lowest)" in BitFlips(1e-3, position=7, fresh=True).describe()
    assert (
        Quantise(4, "channel").describe() == "quantised to 4 bits, symmetric, one range a channel, on weight matrices"
    )
