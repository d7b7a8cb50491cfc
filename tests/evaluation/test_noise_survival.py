"""Whether trained noise survives where a decision sees it: the acceptance checks of weight-covariance alignment."""

import pytest
import torch

from stalwart.data import load
from stalwart.recipes import load_recipe
from stalwart.recipes.runs import Source, train
from stalwart.stochastic import noise
from stalwart.stochastic.heads import noise_statistics

# Three epochs on Fashion-MNIST are 1400 steps; digits needs small batches and a larger rate to come as far in seconds.
SETTING = ("training.epochs=6", "training.batch_size=16", "training.optimiser.lr=5e-3")
NETS = {
    "sumlog": (),
    "logsum": ("model.noise.regulariser=logsum", "model.noise.init=uniform"),
    "none": ("objective={name: natural}",),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    def one(words):
        recipe = load_recipe("digits-wca", [*SETTING, *words])
        return train(recipe, tmp_path_factory.mktemp("wca"), Source(download=False), device="cpu")

    return {name: one(words) for name, words in NETS.items()}


@pytest.fixture(scope="module")
def statistics(trained):
    return {name: noise_statistics(model.head) for name, model in trained.items()}


def test_alignment_keeps_the_noise_alive(statistics):
    assert statistics["sumlog"]["marginal_std"] >= 20 * statistics["none"]["marginal_std"]
    assert statistics["sumlog"]["pairwise_std"] >= 20 * statistics["none"]["pairwise_std"]


def test_the_authors_form_makes_noise_that_no_decision_sees(statistics):
    assert statistics["logsum"]["r"] < 0.01
    assert statistics["sumlog"]["r"] > 0.2
    assert statistics["logsum"]["marginal_std"] > 20 * statistics["none"]["marginal_std"], "it looks alive"


def test_the_logsum_net_is_nearly_deterministic(trained):
    x, _ = load("digits").test.batch(slice(0, 200))
    agreement = {}
    for name, model in trained.items():
        with noise(model, "off"), torch.no_grad():
            mean = model(x).argmax(1)
        with noise(model, "on", seed=0), torch.no_grad():
            agreement[name] = float((model(x).argmax(1) == mean).float().mean())
    assert agreement["logsum"] > 0.95


def test_the_covariance_is_exact_after_training(trained):
    model = trained["sumlog"]
    x, _ = load("digits").test.batch(slice(0, 4))
    with torch.no_grad(), noise(model, "on", seed=1):
        draws = model.draw(x, 20_000).double()
    expected = model.head.logit_covariance().detach().double()
    with noise(model, "off"), torch.no_grad():
        mean = model(x).double()
    error = (expected.diagonal() / 20_000).sqrt()
    assert ((draws.mean(0) - mean).abs() < 4.5 * error).all()
    for sample in range(4):
        found = torch.cov(draws[:, sample].T)
        assert (found - expected).norm() < 0.1 * expected.norm()


def test_sigma_is_positive_definite_and_noise_off_is_deterministic(trained):
    x, _ = load("digits").test.batch(slice(0, 50))
    for model in trained.values():
        factor = model.head.factor().detach()
        assert (factor.diagonal() > 0).all()
        assert torch.equal(factor, factor.tril())
        with torch.no_grad(), noise(model, "off"):
            assert torch.equal(model(x), model(x))
        with torch.no_grad():
            assert not torch.equal(model(x), model(x))
