"""The family of recipes on noise in the weights: one network and budget, one method each."""

import pytest

from stalwart.core.registry import build
from stalwart.objectives import OBJECTIVES
from stalwart.recipes import load_recipe
from stalwart.training.config import ClipWeights

STEM = "fashion-mnist-cnn-"
PASSES = {"entropy-sgd": 10, "abcd": 2}
"""Gradients on each batch of those whose epochs are cut to pay for them."""


@pytest.mark.parametrize("name", ["clip", "randbet", "qat", "dropout", "amp", "awp", "entropy-sgd", "abcd"])
def test_they_differ_in_their_method_alone(name):
    standard, recipe = load_recipe(f"{STEM}standard"), load_recipe(f"{STEM}{name}")
    assert recipe.data == standard.data
    assert recipe.model.options == ({"dropout": 0.3} if name == "dropout" else {})
    assert (recipe.model.name, recipe.model.mean, recipe.model.std) == ("buchel-cnn", [0.5], [0.25])
    training, shared = recipe.training, standard.training
    assert (training.optimiser, training.batch_size) == (shared.optimiser, shared.batch_size)
    assert training.epochs * PASSES.get(name, 1) == shared.epochs
    last = training.epochs - training.schedule.milestones[0]
    assert last / training.epochs == pytest.approx(0.2, abs=0.05)
    expected = ClipWeights(limit=0.1) if name in ("clip", "randbet") else None
    assert training.clip_weights == expected
    assert training.criterion == ("last" if name == "qat" else "clean"), "validation sees weights that are not rounded"
    plain = name in ("clip", "dropout")
    assert recipe.objective.name == ("natural" if plain else name)


def test_published_values():
    def objective(name):
        section = load_recipe(name).objective
        return build("objective", OBJECTIVES, section.name, section.options)

    randbet = objective(f"{STEM}randbet")
    assert (randbet.bits, randbet.rate, randbet.start, randbet.clip, randbet.flips) == (8, 0.01, 1.75, 0.05, 0)
    assert objective(f"{STEM}amp").eps == 0.005
    entropy = objective(f"{STEM}entropy-sgd")
    assert (entropy.steps, entropy.rate, entropy.average, entropy.noise) == (10, 0.1, 0.75, 1e-4)
    assert objective(f"{STEM}abcd").share == 0.5
    assert objective("digits-randbet").bits == 4
    assert (objective("digits-qat").bits, objective("digits-qat").activation_bits) == (3, 4)
