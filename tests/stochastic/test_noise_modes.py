"""When noise is drawn, from which stream, and that switching it leaves no trace."""

import copy
import pickle

import pytest
import torch
from torch import nn

from stalwart.core.random import generator, shard
from stalwart.stochastic import GaussianHead, PNIConv2d, PNILinear, WCAHead, inject, is_random, noise

FEATURES = torch.randn(6, 5, generator=generator(0))


def wca():
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), WCAHead(4, 3))


def gaussian():
    return nn.Sequential(nn.Linear(5, 4), GaussianHead(4, 3, std=0.7))


def pni():
    return inject(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)))


def pni_conv():
    layers = nn.Sequential(nn.Unflatten(1, (1, 1, 5)), nn.Conv2d(1, 3, (1, 5)), nn.Flatten())
    return inject(layers)


@pytest.fixture(params=[wca, gaussian, pni, pni_conv])
def model(request):
    torch.manual_seed(0)
    return request.param()


def test_on_draws_anew_at_each_call(model):
    assert is_random(model)
    assert not torch.equal(model(FEATURES), model(FEATURES))


@pytest.mark.parametrize("build", [wca, gaussian])
def test_each_sample_of_a_batch_gets_its_own_noise(build):
    model = build()
    same = FEATURES[:1].expand(6, -1)
    with noise(model, "off"):
        assert torch.allclose(model(same), model(same)[:1].expand(6, -1))
    logits = model(same)
    assert len({tuple(row) for row in logits.tolist()}) == 6


def test_off_is_deterministic_and_draws_nothing(model):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with noise(model, "off"):
        assert not is_random(model)
        assert torch.equal(model(FEATURES), model(FEATURES))
    assert is_random(model)
    model(FEATURES)
    assert torch.equal(torch.get_rng_state(), state), "noise must not come from the global generator"


def test_fixed_repeats_itself_and_depends_on_its_seed(model):
    found = []
    for seed in (3, 3, 4):
        with noise(model, "fixed", seed=seed):
            assert not is_random(model)
            found.append(model(FEATURES))
            assert torch.equal(model(FEATURES), found[-1])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    with noise(model, "off"):
        assert not torch.allclose(model(FEATURES), found[0])


def test_fixed_needs_a_seed(model):
    with pytest.raises(ValueError, match="seed"), noise(model, "fixed"):
        pass
    assert is_random(model)


def test_a_seed_repeats_a_whole_sequence_of_draws(model):
    runs = []
    for _ in range(2):
        with noise(model, seed=7):
            runs.append([model(FEATURES), model(FEATURES)])
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[0][1])


def test_two_layers_of_one_model_draw_from_different_streams():
    model = nn.ModuleList([GaussianHead(4, 4), GaussianHead(4, 4)])
    model[1].load_state_dict(model[0].state_dict())
    with noise(model, seed=0):
        assert not torch.equal(model[0](FEATURES[:, :4]), model[1](FEATURES[:, :4]))


@pytest.mark.parametrize("mode", ["on", "off", "fixed"])
def test_training_mode_has_no_say(model, mode):
    outputs = []
    for training in (True, False):
        model.train(training)
        with noise(model, mode, seed=0):
            outputs.append(model(FEATURES))
            assert is_random(model) == (mode == "on")
    assert torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("fail", [False, True])
def test_contexts_nest_and_restore_modes_and_streams(model, fail):
    def use():
        with noise(model, "fixed", seed=1):
            fixed = model(FEATURES)
            with noise(model, "off"):
                model(FEATURES)
            with noise(model, "on", seed=5):
                assert is_random(model)
                model(FEATURES)
            with noise(model, seed=9):  # without a mode, a fixed layer keeps its draws
                assert torch.equal(model(FEATURES), fixed)
            assert torch.equal(model(FEATURES), fixed)
            if fail:
                raise RuntimeError("stop")

    with noise(model, seed=2):
        undisturbed = [model(FEATURES), model(FEATURES)]
    with noise(model, seed=2):
        first = model(FEATURES)
        if fail:
            with pytest.raises(RuntimeError, match="stop"):
                use()
        else:
            use()
        assert is_random(model)
        second = model(FEATURES)
    assert torch.equal(first, undisturbed[0])
    assert torch.equal(second, undisturbed[1]), "the stream must go on where it stood"


def test_copies_and_pickles_work_and_draw_on_their_own(model):
    model(FEATURES)  # the layers hold generators now
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not torch.equal(twin(FEATURES), model(FEATURES))
        with noise(twin, "off"), noise(model, "off"):
            assert torch.equal(twin(FEATURES), model(FEATURES))
        with noise(twin, "fixed", seed=0), noise(model, "fixed", seed=0):
            assert torch.equal(twin(FEATURES), model(FEATURES))


def test_a_model_without_noise_is_left_alone():
    model = nn.Linear(5, 3)
    assert not is_random(model)
    with noise(model, "fixed", seed=0):
        assert torch.equal(model(FEATURES), model(FEATURES))


def test_noise_modes_are_no_part_of_the_weights(model):
    with noise(model, "off"):
        off = set(model.state_dict())
    assert off == set(model.state_dict())
    assert not any("stream" in key or "mode" in key for key in off)


@pytest.mark.parametrize("build", [wca, gaussian])
def test_two_ranks_see_the_noise_of_one_process(build):
    model = build()
    with noise(model, seed=0):
        whole = model[-1].draw(model[:-1](FEATURES), 3)
    parts = []
    for rank in range(2):
        with noise(model, seed=0), shard(rank, 2):
            parts.append(model[-1].draw(model[:-1](FEATURES[3 * rank : 3 * rank + 3]), 3))
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-6)


def test_two_ranks_share_the_noise_on_weights():
    model = pni()
    outputs = []
    for rank in range(2):
        with noise(model, seed=0), shard(rank, 2):
            outputs.append(model(FEATURES))
    with noise(model, seed=0):
        outputs.append(model(FEATURES))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_pni_layers_are_what_inject_makes():
    assert [type(layer) for layer in pni()] == [PNILinear, nn.ReLU, PNILinear]
    assert type(pni_conv()[1]) is PNIConv2d
