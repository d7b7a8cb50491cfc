"""Noise on outputs of layers, and converters around them."""

import pytest
import torch
from chip_networks import assert_same, cnn, images, snapshot
from torch import nn

from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.hardware import ActivationQuantise, Mismatch, OutputNoise, layer_ranges


@pytest.mark.parametrize("of", ["range", "std"])
def test_output_noise_has_its_std_for_each_vector(of):
    model = nn.Linear(30, 20_000).double().requires_grad_(False)
    x = torch.randn(2, 30, generator=generator(0), dtype=torch.float64) * torch.tensor([[1.0], [10.0]])
    clean = model(x)
    with OutputNoise(0.05, of).chip(model, 0):
        moved = model(x) - clean
        assert not torch.equal(model(x) - clean, moved)
    unit = clean.abs().amax(1) if of == "range" else clean.std(1)
    torch.testing.assert_close(moved.std(1), 0.05 * unit, rtol=0.02, atol=0)


def test_output_noise_of_images_and_of_calibrated_ranges():
    model = nn.Conv2d(1, 8, 3).double().requires_grad_(False)
    x = torch.rand(2, 1, 50, 50, generator=generator(0), dtype=torch.float64) * torch.tensor([1.0, 9.0]).reshape(
        2, 1, 1, 1
    )
    clean = model(x)
    with OutputNoise(0.1).chip(model, 0):
        moved = model(x) - clean
    torch.testing.assert_close(moved.flatten(1).std(1), 0.1 * clean.flatten(1).abs().amax(1), rtol=0.03, atol=0)
    model = nn.Sequential(model)
    with OutputNoise(0.1, ranges=layer_ranges(model, x)).chip(model, 0):
        moved = model(x) - clean
    torch.testing.assert_close(moved.flatten(1).std(1), (0.1 * clean.abs().max()).expand(2), rtol=0.03, atol=0)


def test_ranges_are_largest_values_seen():
    model, x = cnn(), images()
    ranges = layer_ranges(model, x)
    assert list(ranges) == ["0", "4", "6"]
    assert ranges["0"][0] == float(x.abs().max())
    assert ranges["6"][1] == float(model(x).detach().abs().max())
    assert snapshot(model)[4] == [0] * 8


@pytest.mark.parametrize("at", ["dac", "adc", "both"])
def test_converters_round_to_half_a_step(at):
    model = nn.Linear(6, 6, bias=False).requires_grad_(False)
    nn.init.eye_(model.weight)
    x = torch.randn(50, 6, generator=generator(0))
    with ActivationQuantise(4, at=at).chip(model, 0):
        y = model(x)
    step = x.abs().amax(1, keepdim=True) / 7
    assert bool(((y - x).abs() <= step / 2 * (1 + 1e-5)).all())
    torch.testing.assert_close(y / step, (y / step).round(), rtol=0, atol=1e-4)
    assert bool(((y - x).abs() > 0.4 * step).any())


def test_converters_clip_and_pass_gradients_inside_their_range():
    model = nn.Sequential(nn.Linear(3, 3, bias=False))
    nn.init.eye_(model[0].weight)
    x = torch.tensor([[0.3, -2.0, 0.9]], requires_grad=True)
    with ActivationQuantise(8, clip=0.5, at="dac", ranges={"0": (2.0, 100.0)}).chip(model, 0):
        y = model(x)
        y.sum().backward()
    assert float(y[0, 1].detach()) == -1.0
    torch.testing.assert_close(y.detach()[0, [0, 2]], torch.tensor([0.3, 0.9]), rtol=0, atol=0.5 / 127)
    assert x.grad.tolist() == [[1.0, 0.0, 1.0]]


def test_converters_of_zeros_give_zeros():
    model = nn.Linear(3, 2, bias=False)
    with ActivationQuantise(2).chip(model, 0):
        assert model(torch.zeros(1, 3)).tolist() == [[0.0, 0.0]]


def test_results_do_not_depend_on_the_batch():
    model, x = cnn(), images()
    with ActivationQuantise(5).chip(model, 0):
        torch.testing.assert_close(model(x)[:3], model(x[:3]))


def test_noise_comes_before_the_converter_in_a_chain_and_the_model_is_untouched():
    model, x = cnn(), images()
    before = snapshot(model)
    ranges = layer_ranges(model, x)
    with (Mismatch(0.1) | OutputNoise(0.1) | ActivationQuantise(3, ranges=ranges)).chip(model, 0):
        step = ranges["6"][1] / 3
        codes = model(x).detach() / step
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
    assert_same(before, snapshot(model))


def test_apply_leaves_parameters():
    params = {"fc.weight": torch.ones(2, 2)}
    assert OutputNoise(0.1).apply(params, generator(0)) is params


def test_errors_and_descriptions():
    with pytest.raises(UsageError, match="For 4 % write 0.04"):
        OutputNoise(4.0)
    with pytest.raises(UsageError, match="of='range'"):
        OutputNoise(0.1, "std", ranges={"0": (1.0, 1.0)})
    with pytest.raises(UsageError, match="2 to 16 bits"):
        ActivationQuantise(1)
    with pytest.raises(UsageError, match="clip must be positive"):
        ActivationQuantise(8, clip=0.0)
    model = cnn()
    before = snapshot(model)
    for fault, error, says in (
        (OutputNoise(0.1, only="fc*"), UsageError, r"no layer is called 'fc\*'. There is: 0, 4, 6"),
        (OutputNoise(0.1, ranges={"0": (1.0, 1.0)}), UsageError, "no layer '4', only 0; find them"),
    ):
        with pytest.raises(error, match=says), (Mismatch(0.1) | fault).chip(model, 0):
            pass
        assert_same(before, snapshot(model))
    with pytest.raises(InputError, match="no linear or convolutional"), OutputNoise(0.1).chip(nn.ReLU(), 0):
        pass
    assert OutputNoise(0.04, only="fc").describe() == (
        "output noise of standard deviation 4 % of the output's range max|y|, fresh at each read, on layers fc"
    )
    assert ActivationQuantise(8).describe() == (
        "DAC and ADC of 8 bits, clipped at 100 % of the range max|v| of each vector or image, on all linear and "
        "convolutional layers"
    )
