"""Objectives that train for a device: the same values as the device gives, straight-through gradients, by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from stalwart.attacks.weight_bits import count_bits, decoded, flip, gains
from stalwart.core.errors import UsageError
from stalwart.core.random import generator
from stalwart.core.registry import build
from stalwart.hardware import ActivationQuantise, BitFlips, Quantise
from stalwart.hardware.codes import unsigned
from stalwart.models import build_model
from stalwart.models.spiking import Spiking
from stalwart.objectives import OBJECTIVES, Moment, Trainee


def objective(name, **options):
    return build("objective", OBJECTIVES, name, options)


def params_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gradient_at(model, moved, x, y):
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in moved.items()}
    loss = F.cross_entropy(functional_call(model, leaves, (x,)), y)
    loss.backward()
    return float(loss.detach()), {name: leaf.grad for name, leaf in leaves.items()}


def stored(params, bits, masks=None):
    codes = {name: unsigned(p, bits) for name, p in params.items()}
    return decoded(flip(codes, masks or {}), params)


@pytest.mark.parametrize("bits", [2, 5])
@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("activation_bits", "at", "clip"), [(None, "both", 1.0), (4, "both", 0.8), (3, "dac", 1.0)])
def test_training_sees_the_logits_of_the_device(net, batch, bits, per, symmetric, activation_bits, at, clip):
    x, y = batch
    net.eval()
    options = {"bits": bits, "per": per, "symmetric": symmetric}
    device = Quantise(bits, per, symmetric)
    if activation_bits:
        options |= {"at": at, "clip": clip}
        device = device | ActivationQuantise(activation_bits, clip, at)
    _, logits = objective("qat", activation_bits=activation_bits, **options).loss(net, x, y, Moment(0))
    with device.chip(net, 0):
        expected = net(x)
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, net(x))
    bare = copy.deepcopy(net)
    assert torch.equal(bare(x), net(x)), "no hook is left behind"


def test_rounding_weights_passes_gradients_unchanged(small, points):
    x, y = points
    params = params_of(small)
    moved = {name: p if "bias" in name else Quantise(3).perturb(p, generator(0)) for name, p in params.items()}
    value, expected = gradient_at(small, moved, x, y)
    loss, _ = objective("qat", bits=3, activation_bits=None).loss(small, x, y, Moment(0))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(value, rel=1e-12)
    for name, p in small.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])
        assert torch.equal(p.detach(), params[name]), "weights are as they were, to the bit"


def test_converters_pass_gradients_of_what_they_do_not_clip():
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    x, y = torch.randn(5, 4, generator=generator(0), dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    weight = model.weight.detach().clone().requires_grad_()

    def rounded(values, bits, share):
        limit = share * values.detach().abs().amax(1, keepdim=True)
        step = limit / (2 ** (bits - 1) - 1)
        codes = (values.detach() / step).round().clamp(-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) * step
        inside = values.detach().abs() <= limit
        return codes + torch.where(inside, values - values.detach(), 0.0), inside

    seen, _ = rounded(x, 4, 0.7)
    logits, inside = rounded(seen @ weight.t(), 4, 0.7)
    F.cross_entropy(logits, y).backward()
    assert not inside.all(), "something is clipped"
    loss, found = objective("qat", bits=None, activation_bits=4, clip=0.7).loss(model, x, y, Moment(0))
    loss.backward()
    torch.testing.assert_close(found, logits)
    torch.testing.assert_close(model.weight.grad, weight.grad)


@pytest.mark.parametrize("name", ["qat", "forward-noise"])
def test_noise_in_range_is_a_share_of_the_largest_weight(name):
    model = nn.Linear(400, 250).double()
    options = {"bits": None, "activation_bits": None, "noise": 0.1} if name == "qat" else {"eta": 0.1, "mode": "range"}
    one = objective(name, **options)
    weights = {"w": model.weight.detach()}
    draws = [one.move(weights, dict, lambda _, seed=seed: generator(seed))["w"] - weights["w"] for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    sigma = 0.1 * float(weights["w"].abs().max())
    assert float(draws[0].std()) == pytest.approx(sigma, rel=0.02)
    # It does not depend on the size of each weight.
    small = weights["w"].abs() < weights["w"].abs().median()
    assert float(draws[0][small].std()) == pytest.approx(float(draws[0][~small].std()), rel=0.03)


def test_biases_and_normalisation_are_digital(net):
    assert list(objective("qat").chosen(net)) == ["0.weight", "5.weight", "7.weight"]
    assert list(objective("randbet").chosen(net)) == [
        "0.weight", "0.bias", "5.weight", "5.bias", "7.weight", "7.bias",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["qat", "randbet"])
def test_batch_norm_sees_one_pass(net, batch, name):
    model = copy.deepcopy(net).train()
    loss, _ = objective(name, **({"start": 100} if name == "randbet" else {})).loss(model, *batch, Moment(0))
    loss.backward()
    assert int(model[1].num_batches_tracked) == int(net[1].num_batches_tracked) + 1
    assert all(p.grad is not None for p in model.parameters())


def test_hooks_go_when_the_model_fails(small, points):
    class Fuse(nn.Module):
        def forward(self, x):
            raise RuntimeError("the model gave up")

    model = nn.Sequential(small[0], Fuse())
    with pytest.raises(RuntimeError, match="gave up"):
        objective("qat").loss(model, *points, Moment(0))
    assert not small[0]._forward_pre_hooks
    assert not small[0]._forward_hooks


def randbet_by_hand(model, x, y, bits, masks, clip):
    params = params_of(model)
    clean, first = gradient_at(model, stored(params, bits), x, y)
    wrong, second = gradient_at(model, stored(params, bits, masks), x, y)
    mean = {name: (first[name] + second[name]) / 2 for name in first}
    return (clean + wrong) / 2, {name: g if clip is None else g.clamp(-clip, clip) for name, g in mean.items()}


def masks_of(model, x, rate, bits, seed):
    source = Moment(seed).generator(x, "bit-flips")
    return {name: BitFlips(rate, bits).mask(p.detach(), source) for name, p in model.named_parameters()}


@pytest.mark.parametrize("clip", [None, 0.02])
def test_randbet_averages_both_gradients_and_clips_the_mean(small, points, clip):
    x, y = points
    params, masks = params_of(small), masks_of(small, x, 0.1, 4, 3)
    assert sum(count_bits(mask, 4) for mask in masks.values()) > 0
    value, expected = randbet_by_hand(small, x, y, 4, masks, clip)
    loss, logits = objective("randbet", bits=4, rate=0.1, start=100, clip=clip).loss(small, x, y, Moment(3))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(value, rel=1e-12)
    assert torch.equal(logits, functional_call(small, stored(params, 4), (x,)))
    largest = 0.0
    for name, p in small.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])
        assert torch.equal(p.detach(), params[name]), "weights are as they were, to the bit"
        largest = max(largest, float(p.grad.abs().max()))
    assert largest == pytest.approx(0.02) if clip else largest > 0.02


def test_errors_begin_once_the_loss_is_low(small, points):
    x, y = points
    value, expected = gradient_at(small, stored(params_of(small), 4), x, y)
    results = {}
    for start in (value * 0.999, value * 1.001):
        small.zero_grad()
        loss, _ = objective("randbet", bits=4, rate=0.3, start=start, clip=None).loss(small, x, y, Moment(3))
        loss.backward()
        results[start < value] = (float(loss.detach()), small[0].weight.grad.clone())
    assert results[True][0] == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(results[True][1], expected["0.weight"])
    assert results[False][0] != pytest.approx(value, rel=1e-3)


def test_flips_are_fresh_seeded_and_nested_in_the_rate(small, points):
    x, _ = points
    still = params_of(small)

    def flipped(rate, seed):
        moved = objective("randbet", bits=4, rate=rate).move(still, dict, lambda n: Moment(seed).generator(x, n))
        found = {}
        for name, p in still.items():
            codes = unsigned(p, 4)
            found[name] = ((moved[name] - codes.low) / codes.step).round().long() ^ codes.code
        return found

    low, high, again, other = flipped(0.05, 1), flipped(0.4, 1), flipped(0.4, 1), flipped(0.4, 2)
    assert all(torch.equal(low[name] & high[name], low[name]) for name in still)
    assert 0 < sum(count_bits(m, 4) for m in low.values()) < sum(count_bits(m, 4) for m in high.values())
    assert all(torch.equal(high[name], again[name]) for name in still)
    assert not all(torch.equal(high[name], other[name]) for name in still)


def test_adversarial_flips_by_hand(small, points):
    x, y = points
    params = params_of(small)
    codes = {name: unsigned(p, 4) for name, p in params.items()}
    _, slopes = gradient_at(small, stored(params, 4), x, y)
    every = sorted(
        ((-float(g), name, row, bit)
         for name in params for row, line in enumerate(gains(codes[name], slopes[name], 4)) for bit, g in enumerate(line)),
    )  # fmt: skip
    masks = {name: torch.zeros(p.numel(), dtype=torch.long) for name, p in params.items()}
    for _, name, row, bit in every[:5]:
        masks[name][row] |= 1 << bit
    masks = {name: mask.reshape(params[name].shape) for name, mask in masks.items()}
    value, expected = randbet_by_hand(small, x, y, 4, masks, 0.05)
    loss, _ = objective("randbet", bits=4, flips=5, start=100).loss(small, x, y, Moment(3))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(value, rel=1e-12)
    for name, p in small.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])
    # More steps spend the same budget.
    moved = objective("randbet", bits=4, flips=5, steps=3).move(
        params, lambda at: gradient_at(small, at, x, y)[1], lambda name: generator(0)
    )
    spent = sum(
        count_bits(((moved[name] - codes[name].low) / codes[name].step).round().long() ^ codes[name].code, 4)
        for name in params
    )
    assert spent == 5


def error_under(model, device, x, y):
    wrong = []
    for seed in range(10):
        with device.chip(model, seed), torch.no_grad():
            wrong.append(float((model(x).argmax(1) != y).double().mean()))
    return sum(wrong) / len(wrong)


def trained(one, x, y, steps=150):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2))
    trainee, optimiser = Trainee(model, one), torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        optimiser.zero_grad()
        trainee(x, y, Moment(step))[0].backward()
        optimiser.step()
    return model


def test_training_for_a_device_helps_on_it():
    x = torch.rand(300, 16, generator=generator(0))
    y = (x[:, :4].sum(1) > x[:, 4:8].sum(1)).long()
    natural = trained(objective("natural"), x, y)
    coarse, flips = Quantise(2) | ActivationQuantise(3), BitFlips(0.05, 4)
    rounded = trained(objective("qat", bits=2, activation_bits=3), x, y)
    assert error_under(rounded, coarse, x, y) < 0.6 * error_under(natural, coarse, x, y)
    hardened = trained(objective("randbet", bits=4, rate=0.05), x, y)
    assert error_under(hardened, flips, x, y) < 0.8 * error_under(natural, flips, x, y)


def test_a_base_keeps_its_crafted_inputs(small, points):
    x, y = points
    inner = {"eps": 0.1, "steps": 2}
    fine = {"qat": {"bits": 16, "activation_bits": None}, "randbet": {"bits": 16, "rate": 0.0}}
    alone, _ = objective("pgd-at", **inner).loss(small, x, y, Moment(3))
    for name, options in fine.items():
        loss, _ = objective(name, base="pgd-at", options=inner, **options).loss(small, x, y, Moment(3))
        assert float(loss.detach()) == pytest.approx(float(alone.detach()), rel=1e-3)


@pytest.mark.parametrize("name", ["qat", "randbet"])
def test_spiking_networks_train(batch, name):
    x, y = F.interpolate(batch[0], (8, 8)), batch[1]
    model = build_model("small-cnn", (1, 8, 8), 3, spiking=Spiking(steps=3), seed=2).train()
    loss, _ = Trainee(model, objective(name))(x, y, Moment(0))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert max(float(p.grad.abs().max()) for p in model.parameters()) > 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("qat", {"bits": 1}, "2 to 16 bits"),
        ("qat", {"activation_bits": 1}, "2 to 16 bits"),
        ("qat", {"bits": None, "activation_bits": None}, "nothing is left to train for"),
        ("qat", {"noise": 10}, "write 0.1"),
        ("qat", {"clip": 0}, "clip must be positive"),
        ("qat", {"per": "row"}, "per"),
        ("qat", {"base": "weight-kl"}, "cannot stand inside another"),
        ("randbet", {"bits": 1}, "2 to 16 bits"),
        ("randbet", {"rate": 5}, "write 0.05"),
        ("randbet", {"flips": -1}, "flips"),
        ("randbet", {"flips": 2, "steps": 3}, "at most one step a flip"),
        ("randbet", {"steps": 0}, "steps"),
        ("randbet", {"start": 0}, "start"),
        ("randbet", {"clip": 0}, "clip"),
        ("forward-noise", {"mode": "log-normal"}, "mode"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(UsageError, match=message):
        objective(name, **options)


@pytest.mark.parametrize("name", ["qat", "randbet"])
def test_patterns_that_match_nothing(small, points, name):
    with pytest.raises(UsageError, match="no parameter is called 'head"):
        objective(name, only="head.*").loss(small, *points, Moment(0))
