"""A model is a chip inside the block and itself afterwards."""

import pytest
import torch
from chip_networks import Tied, assert_same, cnn, images, snapshot
from torch import nn

import stalwart as sw
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.hardware import Device, Mismatch, OutputNoise
from stalwart.spiking import LIF


@pytest.mark.parametrize("fresh", [False, True])
def test_model_is_bit_identical_afterwards_even_in_training_and_after_an_error(fresh):
    model = cnn().train()
    model[4].weight.requires_grad_(False)
    model[1].weight.grad = torch.ones(4)
    before = snapshot(model)

    def use():
        with Mismatch(0.2, fresh=fresh).chip(model, seed=0):
            model(images()).sum().backward()  # moves the running statistics
            model.requires_grad_(False)
            model[6].weight.mul_(3.0)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        use()
    assert_same(before, snapshot(model))
    assert model[6].weight.grad is None


def test_mismatch_is_frozen_in_a_chip_and_differs_between_chips():
    model, x = cnn(), images()
    clean = model(x)
    first = Mismatch(0.2).chip(model, seed=0)
    with first:
        a, b = model(x), model(x)
    with first:
        c = model(x)
    with Mismatch(0.2).chip(model, seed=0):
        again = model(x)
    with Mismatch(0.2).chip(model, seed=1):
        other = model(x)
    assert torch.equal(a, b)
    assert torch.equal(a, c)
    assert torch.equal(a, again)
    assert not torch.equal(a, other)
    assert not torch.equal(a, clean)
    assert torch.equal(model(x), clean)


def test_read_noise_is_drawn_at_each_forward_pass_around_the_frozen_chip():
    model, x = nn.Linear(4, 3).requires_grad_(False), torch.eye(4)
    device = Mismatch(0.3) | Mismatch(0.05, fresh=True)
    with Mismatch(0.3).chip(model, seed=2):
        frozen = model(x)
    with device.chip(model, seed=2):
        reads = torch.stack([model(x) for _ in range(400)])
    with device.chip(model, seed=2):
        assert torch.equal(model(x), model(x)) is False
    with device.chip(model, seed=2, reads=1):
        assert not torch.equal(model(x), reads[0])
    assert float((reads.mean(0) - frozen).abs().max()) < 0.02
    assert len(reads.flatten(1).unique(dim=0)) == 400


def test_gradients_pass_through_a_chip_with_read_noise():
    model, x = cnn(), images().requires_grad_()
    with Mismatch(0.1, fresh=True).chip(model, seed=0):
        (model(x).sum() + model(x).sum()).backward()  # the second read must not spoil the first one's graph
    assert float(x.grad.abs().sum()) > 0


def test_attacks_see_the_chip_and_leave_it_as_it_is():
    model, x = cnn(), images()
    y = model(x).argmax(1)
    before = snapshot(model)
    device = Mismatch(0.3) | Mismatch(0.05, fresh=True) | OutputNoise(0.05)
    with device.chip(model, seed=0):
        found = sw.attack("pgd", steps=3, eot=2)(model, x, y, within=sw.Linf(0.1), seed=0)
        assert bool(found.success.any())
    with Mismatch(0.3).chip(model, seed=0):
        own = sw.attack("pgd", steps=3)(model, x, y, within=sw.Linf(0.1), seed=0)
    digital = sw.attack("pgd", steps=3)(model, x, y, within=sw.Linf(0.1), seed=0)
    assert not torch.equal(own.margin, digital.margin)
    assert_same(before, snapshot(model))


def test_batch_norm_is_left_alone_and_biases_of_matrices_are_not():
    chip = Mismatch(0.1).chip(cnn(), seed=0)
    assert set(chip.parameters) == {"0.weight", "0.bias", "4.weight", "4.bias", "6.weight", "6.bias"}
    assert set(Mismatch(0.1, only="*.weight").chip(cnn(), seed=0).parameters) == {"0.weight", "4.weight", "6.weight"}


def test_tied_weights_share_one_draw():
    model = Tied()
    with Mismatch(0.5).chip(model, seed=0) as chip:
        assert model.first.weight is model.second.weight
        assert torch.equal(chip.parameters["first.weight"], chip.parameters["second.weight"])
    assert model.first.weight is model.second.weight
    # Chosen by its second name, a tied weight moves under both.
    chip = Mismatch(0.5, only="second.weight").chip(model, seed=0)
    assert torch.equal(chip.parameters["first.weight"], chip.parameters["second.weight"])


def test_the_draw_of_a_weight_does_not_depend_on_what_else_is_chosen():
    whole = Mismatch(0.1).chip(cnn(), seed=0).parameters
    alone = Mismatch(0.1, only="6.weight").chip(cnn(), seed=0).parameters
    assert torch.equal(whole["6.weight"], alone["6.weight"])


def test_thresholds_and_leaks_of_neurons_by_name():
    model = nn.Sequential(nn.Linear(3, 3), LIF(0.9, 1.0, shape=(3,), trained=("threshold",)))
    before = snapshot(model)
    with Mismatch(0.2, "log-normal", only=("*threshold", "*leak")).chip(model, seed=0) as chip:
        assert set(chip.parameters) == {"1.threshold", "1.leak"}
        assert not torch.equal(model[1].leak, torch.full((3,), 0.9))
    assert_same(before, snapshot(model))


def test_recurrent_layers_use_the_chips_weights():
    model, x = nn.LSTM(3, 4), torch.rand(5, 2, 3, generator=generator(0))
    clean = model(x)[0]
    with Mismatch(0.5).chip(model, seed=0):
        assert not torch.equal(model(x)[0], clean)
    assert torch.equal(model(x)[0], clean)


def test_apply_is_pure_and_keeps_other_parameters():
    params = {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2), "norm.weight": torch.ones(2)}
    after = Mismatch(0.5).apply(params, generator(0))
    assert torch.equal(params["a.weight"], torch.ones(2, 2))
    assert after["norm.weight"] is params["norm.weight"]
    assert not torch.equal(after["a.bias"], params["a.bias"])


def test_unknown_parameters_are_named_with_what_there_is():
    with pytest.raises(UsageError, match=r"no parameter is called '\*tau'. There is: 0.weight, 0.bias, 4.weight"):
        Mismatch(0.1, only=("*weight", "*tau")).chip(cnn(), seed=0)
    with pytest.raises(UsageError, match=r"no weight matrix .*There is: nothing"):
        Mismatch(0.1).chip(nn.ReLU(), seed=0)


def test_integer_and_half_weights_are_refused():
    for dtype in (torch.int8, torch.float16):
        with pytest.raises(InputError, match="'fc.weight' holds .*dequantised"):
            Mismatch(0.1).apply({"fc.weight": torch.ones(2, 2).to(dtype)}, generator(0))


def test_parametrised_weights_are_refused():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    with pytest.raises(InputError, match="remove_parametrizations"):
        Mismatch(0.1).chip(model, seed=0)


def test_a_chip_in_use_cannot_be_used_again():
    chip = Mismatch(0.1).chip(cnn(), seed=0)
    with chip, pytest.raises(UsageError, match="in use"):
        chip.__enter__()


def test_chips_nest():
    model = cnn()
    before = snapshot(model)
    with Mismatch(0.1).chip(model, seed=0):
        inner = model[0].weight
        with Mismatch(0.1).chip(model, seed=1):
            assert model[0].weight is not inner
        assert model[0].weight is inner
    assert_same(before, snapshot(model))


def test_order_is_physical():
    with pytest.raises(UsageError, match="'program', before Mismatch at stage 'read'.*quantise -> program"):
        Mismatch(0.1, fresh=True) | Mismatch(0.1)
    with pytest.raises(UsageError, match="at least one"):
        Device(())
    chain = Mismatch(0.1) | (Mismatch(0.2) | Mismatch(0.1, fresh=True))
    assert len(chain.faults) == 3
    assert chain.describe().count(" | ") == 2


def test_two_faults_of_a_kind_draw_apart():
    one, model = Mismatch(0.1), nn.Linear(1000, 1, bias=False).double()
    nn.init.ones_(model.weight)
    once = one.chip(model, 0).parameters["weight"] - 1
    both = (one | one).chip(model, 0).parameters["weight"] / (1 + once) - 1
    assert abs(float(torch.corrcoef(torch.cat([once, both]))[0, 1])) < 0.15
