"""Bits of stored weights under attack: what flipping each does, the budget, and models left as they were."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from traces import snapshot

import stalwart as sw
from stalwart.attacks.weight_bits import best_of_all, count_bits, decoded, flip, gains, gathered, promising, spread
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.hardware import BitFlips, Quantise
from stalwart.hardware.codes import unsigned
from stalwart.models import build_model
from stalwart.models.spiking import Spiking

X = torch.rand(6, 1, 8, 8, generator=generator(0))
Y = torch.arange(6) % 3


def smooth(dtype=torch.float64):
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Softplus(), nn.Flatten(), nn.Linear(108, 3)).to(dtype).eval()


def clean_of(model, budget):
    return {name: p.detach().clone() for name, p in budget.select(model).items()}


def loss_at(model, moved, x=X, y=Y):
    dtype = next(model.parameters()).dtype
    return float(F.cross_entropy(functional_call(model, moved, (x.to(dtype),)), y).detach())


@given(bits=st.integers(2, 16), seed=st.integers(0, 999))
def test_bits_are_spread_and_gathered(bits, seed):
    mask = torch.randint(0, 2**bits, (3, 4), generator=generator(seed))
    places = spread(mask, bits).flatten().nonzero().flatten()
    assert torch.equal(gathered(places, bits, mask), mask)
    assert len(places) == count_bits(mask, bits) == sum(bin(int(one)).count("1") for one in mask.flatten())


def test_a_gain_is_slope_times_the_change_of_value():
    weight = torch.randn(2, 3, generator=generator(0), dtype=torch.float64)
    slope = torch.randn(2, 3, generator=generator(1), dtype=torch.float64)
    codes = unsigned(weight, 4)
    found = gains(codes, slope, 4)
    for row, (i, j) in enumerate(itertools.product(range(2), range(3))):
        for bit in range(4):
            mask = torch.zeros(2, 3, dtype=torch.long)
            mask[i, j] = 1 << bit
            change = flip({"w": codes}, {"w": mask})["w"].decode(weight) - codes.decode(weight)
            assert float(found[row, bit]) == pytest.approx(float((slope * change).sum()), abs=1e-12)


def test_the_most_promising_bits_are_those_of_an_enumeration():
    weights = {key: torch.randn(3, generator=generator(key), dtype=torch.float64) for key in (0, 1)}
    stored = {str(key): unsigned(weight, 3) for key, weight in weights.items()}
    slopes = {str(key): torch.randn(3, generator=generator(key + 5), dtype=torch.float64) for key in (0, 1)}
    every = sorted(
        (-float(gains(stored[name], slopes[name], 3)[row, bit]), name, row, bit)
        for name in stored for row in range(3) for bit in range(3)
    )  # fmt: skip
    assert sum(gain < 0 for gain, *_ in every) >= 4
    found = promising(stored, stored, slopes, 3, 4)
    masks = best_of_all(found, stored, 3, 4)
    expected = {name: torch.zeros(3, dtype=torch.long) for name in stored}
    for _, name, row, bit in every[:4]:
        expected[name][row] |= 1 << bit
    assert all(torch.equal(masks.get(name, torch.zeros(3, dtype=torch.long)), expected[name]) for name in stored)
    # What is flipped already is not flipped back, and what does no harm is left.
    again = promising(flip(stored, masks), stored, slopes, 3, 9)
    for name, (gain, places) in again.items():
        assert bool((gain > 0).all())
        assert not (spread(expected[name], 3).flatten()[places] == 1).any()
    nothing = {name: torch.zeros(3, dtype=torch.float64) for name in stored}
    assert promising(stored, stored, nothing, 3, 2) == {}
    assert best_of_all({}, stored, 3, 2) == {}


@pytest.mark.parametrize("bits", [2, 4])
def test_one_flip_of_a_linear_model_is_the_worst_of_all(bits):
    # With one input and two classes the loss is monotone in a function that is linear in each bit's change.
    torch.manual_seed(3)
    model = nn.Linear(3, 2, bias=False).double()
    x, y = torch.rand(1, 3, generator=generator(2), dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    budget = sw.BitBudget(1, bits)
    clean = {"weight": unsigned(model.weight.detach(), bits)}
    values = []
    for row, bit in itertools.product(range(6), range(bits)):
        mask = torch.zeros(6, dtype=torch.long)
        mask[row] = 1 << bit
        moved = decoded(flip(clean, {"weight": mask.reshape(2, 3)}), {"weight": model.weight.detach()})
        values.append(loss_at(model, moved, x, y))
    found = sw.attack("weight-bitflip")(model, x, y, within=budget)
    assert found.loss.after == pytest.approx(max(values), rel=1e-12)
    assert budget.distance({"weight": model.weight.detach()}, found.parameters) == 1


def test_progressive_search_by_hand():
    model, budget = smooth(), sw.BitBudget(3, 6)
    clean = clean_of(model, budget)
    start = {name: unsigned(p, 6) for name, p in clean.items()}
    stored = start
    for _ in range(3):
        leaves = {name: t.requires_grad_() for name, t in decoded(stored, clean).items()}
        F.cross_entropy(functional_call(model, leaves, (X.double(),)), Y).backward()
        trials = []
        for name, leaf in leaves.items():
            gain = gains(stored[name], leaf.grad, 6)
            gain[spread(stored[name].code ^ start[name].code, 6) == 1] = -1
            place = int(gain.argmax())
            mask = torch.zeros(leaf.numel(), dtype=torch.long)
            mask[place // 6] = 1 << (place % 6)
            trial = flip(stored, {name: mask.reshape(leaf.shape)})
            trials.append((loss_at(model, decoded(trial, clean)), trial))
        value, stored = max(trials, key=lambda pair: pair[0])
    found = sw.attack("weight-bitflip")(model, X.double(), Y, within=budget)
    assert found.loss.after == pytest.approx(value, rel=1e-12)
    for name, tensor in decoded(stored, clean).items():
        assert torch.equal(found.parameters[name], tensor)


def test_a_budget_of_nothing_is_the_quantised_network():
    model = smooth()
    found = sw.attack("weight-bitflip")(model, X.double(), Y, within=sw.BitBudget(0, 3, "*weight"))
    quantised = Quantise(3, symmetric=False).apply(clean_of(model, sw.BitBudget(0, 3, "*weight")), generator(0))
    assert all(torch.equal(found.parameters[name], tensor) for name, tensor in quantised.items())
    assert found.loss.after == pytest.approx(loss_at(model, quantised))
    assert found.loss.before == pytest.approx(loss_at(model, clean_of(model, sw.BitBudget(0))))


def test_larger_budgets_do_more_harm_and_random_flips_less():
    model, flips = smooth(torch.float32), (0, 1, 4, 12)
    found = [sw.attack("weight-bitflip")(model, X, Y, within=sw.BitBudget(k)) for k in flips]
    losses = [one.loss.after for one in found]
    assert losses == sorted(losses)
    assert losses[1] > losses[0]
    clean = clean_of(model, sw.BitBudget(12))
    assert [sw.BitBudget(k).distance(clean, one.parameters) for k, one in zip(flips, found, strict=True)] == list(flips)
    total = 8 * sum(p.numel() for p in clean.values())
    random = [loss_at(model, BitFlips(12 / total).apply(clean, generator(seed))) for seed in range(10)]
    assert losses[-1] - losses[0] > 5 * (max(random) - losses[0])
    fast = sw.attack("weight-bitflip", at_once=4, tries=1)(model, X, Y, within=sw.BitBudget(12))
    assert losses[0] < fast.loss.after
    assert int(fast.cost.backwards[0]) == 3 < int(found[-1].cost.backwards[0]) == 12


@given(
    flips=st.integers(0, 9), bits=st.integers(2, 16), at_once=st.integers(1, 4), seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
@settings(max_examples=30)
def test_results_stay_in_the_budget(flips, bits, at_once, seed, dtype):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3)).to(dtype)
    budget = sw.BitBudget(flips, bits)
    before = clean_of(model, budget)
    found = sw.attack("weight-bitflip", at_once=at_once)(model, X.to(dtype), Y, within=budget).parameters
    total = 0
    for name, clean in before.items():
        # Codes found anew, in float64, on the grid of the clean weights.
        low, high = clean.double().min(), clean.double().max()
        step = (high - low) / (2**bits - 1)
        codes = [((tensor.double() - low) / step).round().long() for tensor in (clean, found[name])]
        torch.testing.assert_close(found[name].double(), low + step * codes[1], rtol=0, atol=1e-6)
        total += sum(bin(int(one)).count("1") for one in (codes[0] ^ codes[1]).flatten())
    assert total <= flips


@given(seed=st.integers(0, 999), flips=st.integers(0, 20), bits=st.integers(2, 8))
def test_projection_puts_back_the_least(seed, flips, bits):
    budget = sw.BitBudget(flips, bits)
    params = {name: torch.randn(4, 3, generator=generator(seed, name), dtype=torch.float64) for name in "ab"}
    moved = {name: p + 0.3 * torch.randn(4, 3, generator=generator(seed, "m")).double() for name, p in params.items()}
    found = budget.project(params, moved)
    assert budget.contains(params, found)
    assert all(torch.equal(one, found[name]) for name, one in budget.project(params, found).items()), "once is enough"
    free = sw.BitBudget(10**6, bits)
    wanted, nearest = free.distance(params, moved), free.project(params, moved)
    assert free.distance(params, found) == min(wanted, flips)
    assert budget.contains(params, nearest) is (wanted <= flips)
    if wanted <= flips:
        assert all(torch.equal(found[name], nearest[name]) for name in params)
    # A bit that was kept changes its weight by at least as much as one that was put back.
    kept, back = [], []
    for name in params:
        codes = unsigned(params[name], bits)
        all_bits = spread(codes.code ^ unsigned_on(codes, nearest[name]), bits)
        kept_bits = spread(codes.code ^ unsigned_on(codes, found[name]), bits)
        assert bool((kept_bits <= all_bits).all())
        sizes = float(codes.step) * 2.0 ** torch.arange(bits)
        kept += [float(sizes[bit]) for _, bit in kept_bits.nonzero()]
        back += [float(sizes[bit]) for _, bit in (all_bits - kept_bits).nonzero()]
    assert not kept or not back or min(kept) >= max(back) * (1 - 1e-12)


def unsigned_on(codes, values):
    return ((values.double() - codes.low) / codes.step).round().long()


def test_who_is_a_member():
    params = {"w": torch.tensor([0.0, 1.0, 0.25])}
    budget = sw.BitBudget(1, 2)  # codes 0, 3, 1 of steps of 1/3
    third = 1 / 3
    for values, inside in (
        ([0.0, 1.0, third], True), ([third, 1.0, third], True), ([0.0, 1.0, 1.0], True), ([0.0, 1.0, 2 * third], False),
        ([0.0, 1.0, 0.25], False), ([third, 2 * third, third], False), ([0.0, 1.0, torch.nan], False),
        ([0.0, 1.5, third], False), ([-torch.inf, 1.0, third], False),
    ):  # fmt: skip
        assert budget.contains(params, {"w": torch.tensor(values)}) is inside, values
    with pytest.raises(InputError, match="names and shapes"):
        budget.contains(params, {"v": params["w"]})
    constant = {"w": torch.full((3,), 0.7)}
    assert budget.contains(constant, constant)
    assert not budget.contains(constant, {"w": torch.full((3,), 0.8)})


def test_nothing_about_the_model_changes():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)
    )
    model[0].weight.requires_grad_(False)
    model[5].bias.grad = torch.full((3,), 3.0)
    before = snapshot(model)
    result = sw.attack("weight-bitflip")(model, X, Y, within=sw.BitBudget(3), batch_size=4)
    assert snapshot(model) == before
    assert list(result.parameters) == ["0.weight", "0.bias", "5.weight", "5.bias"], "no batch norm"
    for tensor in result.parameters.values():
        tensor.add_(1)
    assert snapshot(model) == before, "the result owns its memory"
    again = sw.attack("weight-bitflip")(model, X, Y, within=sw.BitBudget(3), batch_size=6)
    assert again.loss.after == pytest.approx(result.loss.after)


def test_tied_weights_flip_together_and_channels_last_flips_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))
    model[3].weight = model[1].weight
    found = sw.attack("weight-bitflip")(model, X, Y, within=sw.BitBudget(4, only=("1.*", "3.weight")))
    assert list(found.parameters) == ["1.weight", "1.bias"]
    conv = smooth(torch.float32)
    one = sw.attack("weight-bitflip")(conv, X, Y, within=sw.BitBudget(4))
    other = sw.attack("weight-bitflip")(conv.to(memory_format=torch.channels_last), X, Y, within=sw.BitBudget(4))
    assert one.loss.after == pytest.approx(other.loss.after, rel=1e-4)


def test_spiking_models():
    model = build_model("small-cnn", (1, 8, 8), 3, spiking=Spiking(steps=3), seed=2).eval()
    none, some = (
        sw.attack("weight-bitflip", surrogate="triangle")(model, X, Y, within=sw.BitBudget(k)).loss for k in (0, 6)
    )
    assert some.after > none.after


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sw.BitBudget(-1), "at least 0"),
        (lambda: sw.BitBudget(True), "whole number"),
        (lambda: sw.BitBudget(1, 1), "2 to 16 bits, got 1"),
        (lambda: sw.BitBudget(1, 17), "2 to 16 bits"),
        (lambda: sw.attack("weight-bitflip", at_once=0), "at_once"),
        (lambda: sw.attack("weight-bitflip", tries=0), "tries"),
        (lambda: sw.attack("weight-bitflip", loss="kl"), "flat"),
        (lambda: sw.attack("weight-bitflip")(smooth(), X.double(), Y, sw.BitBudget(1, only="heed*")), "called 'heed"),
        (lambda: sw.attack("weight-bitflip")(smooth(), X.double(), Y, sw.RelativeBox(0.1)), "give a set such as BitB"),
        (lambda: sw.attack("weight-pgd")(smooth(), X.double(), Y, sw.BitBudget(1)), "give a set such as RelativeBox"),
        (lambda: sw.attack("weight-bitflip")(smooth(), X.double(), Y, sw.Linf(0.1)), r"set of inputs.*BitBudget\(8\)"),
        (lambda: sw.attack("pgd")(smooth(), X.double(), Y, sw.BitBudget(1)), "attacks inputs.*BitBudget flips=1"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_weights_that_are_no_floats_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    model[1].weight = nn.Parameter(torch.zeros(3, 64, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="'1.weight' holds torch.int8"):
        sw.BitBudget(1).select(model)
    with pytest.raises(InputError, match="torch.float16"):
        sw.BitBudget(1).select(nn.Linear(3, 2).half())
