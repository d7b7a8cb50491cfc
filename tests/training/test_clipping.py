"""Weights that are held in a range: after every step, in what is validated, averaged, saved and handed on."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from stalwart.core.errors import UsageError
from stalwart.data import Data, Split
from stalwart.models import build_model
from stalwart.objectives import Objective
from stalwart.recipes import load_recipe
from stalwart.recipes.load import dump_recipe
from stalwart.training import Fit, Training, loop
from stalwart.training.clipping import clip_weights
from stalwart.training.config import ClipWeights


def fit(folder, objective=None, **config):
    x = torch.rand(12, 3, generator=torch.Generator().manual_seed(0))
    split = Split(x, torch.arange(12) % 2)
    data = Data("made", split, split, split, ("a", "b"), (3,))
    settings = {"epochs": 3, "batch_size": 4, "optimiser": {"name": "sgd", "lr": 5.0, "momentum": 0.9}} | config
    return Fit(
        build_model("mlp", (3,), 2, {"widths": (8,)}), objective or Objective(), data, Training(**settings), folder
    )


def largest(tensors):
    return max(float(tensor.abs().max()) for name, tensor in tensors.items() if not name.startswith("normalise"))


class Pushing(Objective):
    """Moves weights out of any range after each step."""

    def after_step(self, model, moment):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(100.0)


@pytest.mark.parametrize("ema", [0.0, 0.6])
@pytest.mark.parametrize("objective", [Objective(), Pushing()])
def test_weights_stay_within_the_limit_at_every_moment(ema, objective, monkeypatch, tmp_path):
    job = fit(tmp_path, objective, ema=ema, clip_weights=0.05, optimiser={"name": "sgd", "lr": 50.0, "momentum": 0.9})
    seen = [largest(job.model.state_dict())]
    step, validate = Fit._step, loop.validate

    def watched_step(self, *arguments):
        step(self, *arguments)
        seen.extend(largest(one.state_dict()) for one in (self.model, self.candidate))

    def watched_validate(model, *arguments):
        seen.append(largest(model.state_dict()))
        return validate(model, *arguments)

    monkeypatch.setattr(Fit, "_step", watched_step)
    monkeypatch.setattr(loop, "validate", watched_validate)
    job.run()
    saved = load_file(tmp_path / "model.safetensors")
    latest = load_file(tmp_path / "checkpoint" / "latest.safetensors")
    kept = {name: tensor for name, tensor in latest.items() if name.startswith(("model:", "best:", "average:"))}
    seen += [largest(saved), largest({name.partition(":")[2]: tensor for name, tensor in kept.items()})]
    assert max(seen) <= 0.05 * (1 + 1e-6)
    assert min(seen[1:]) > 0.049, "it is the limit that holds them"


def test_one_step_by_hand(tmp_path):
    jobs = [fit(tmp_path, epochs=1, batch_size=12, select="last", clip_weights=clip) for clip in (None, 0.3)]
    with torch.no_grad():
        for parameter in jobs[0].model.parameters():
            parameter.clamp_(-0.3, 0.3)
    for job in jobs:
        job._epoch()
    free, held = (dict(job.model.named_parameters()) for job in jobs)
    assert any(float(p.detach().abs().max()) > 0.3 for p in free.values())
    for name, parameter in free.items():
        torch.testing.assert_close(held[name], parameter.clamp(-0.3, 0.3))


def test_sigmas_by_hand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3)).double()
    before = copy.deepcopy(model)
    clip_weights(model, ClipWeights(sigmas=1.2))
    changed = 0
    for name, old in before.named_parameters():
        new = dict(model.named_parameters())[name]
        if name in ("0.weight", "3.weight"):
            middle, reach = old.mean(), 1.2 * ((old - old.mean()) ** 2).mean().sqrt()
            expected = torch.minimum(torch.maximum(old, middle - reach), middle + reach)
            torch.testing.assert_close(new, expected)
            changed += int((new != old).sum())
        else:
            assert torch.equal(new, old), "no bias, no batch norm"
    assert changed > 0


def test_the_limit_takes_biases_and_leaves_normalisation():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(2.0)
    clip_weights(model, ClipWeights(limit=0.5, only="2.*"))
    assert float(model[0].weight.detach().max()) == 2.0
    assert float(model[2].bias.detach().max()) == 0.5
    clip_weights(model, ClipWeights(limit=0.5))
    assert {name: float(p.detach().max()) for name, p in model.named_parameters()} == {
        "0.weight": 0.5, "0.bias": 0.5, "1.weight": 2.0, "1.bias": 2.0, "2.weight": 0.5, "2.bias": 0.5,
    }  # fmt: skip


def test_recipes_spell_it_out():
    recipe = load_recipe("digits-natural", ["training.clip_weights=1/10"])
    assert recipe.training.clip_weights == ClipWeights(limit=0.1)
    assert "limit: 0.1" in dump_recipe(recipe)
    assert load_recipe("digits-natural", ["training.clip_weights={sigmas: 2}"]).training.clip_weights.sigmas == 2
    assert load_recipe("digits-natural").training.clip_weights is None


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("-0.1", r"clip_weights\.limit"),
        ("wide", "not a number"),
        ("{}", "either a limit, such as 0.1, or sigmas"),
        ("{limit: 1, sigmas: 2}", "either a limit, such as 0.1, or sigmas"),
        ("{limt: 1}", "clip_weights"),
    ],
)
def test_mistakes_are_named(word, message):
    with pytest.raises(UsageError, match=message):
        load_recipe("digits-natural", [f"training.clip_weights={word}"])


def test_a_pattern_that_matches_nothing_is_refused_at_the_start(tmp_path):
    with pytest.raises(UsageError, match="no parameter is called 'heed"):
        fit(tmp_path, clip_weights={"limit": 0.1, "only": "heed.*"})


def test_a_resumed_run_is_the_same(go, go_killed, same, tmp_path):
    words = (
        "digits-natural", "training.epochs=2", "training.limit=96", "training.batch_size=32",
        "training.checkpoint_seconds=0", "training.clip_weights=0.05",
    )  # fmt: skip
    go(words, tmp_path / "whole")
    go_killed(words, tmp_path / "killed", 4)
    go(words, tmp_path / "killed", resume=True)
    same(tmp_path / "killed", tmp_path / "whole")
    assert largest(load_file(tmp_path / "whole" / "model.safetensors")) == pytest.approx(0.05)
