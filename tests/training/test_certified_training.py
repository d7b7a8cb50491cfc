"""Certified training from a recipe to a run folder: what is measured, selected, switched on and resumed."""

import json
import math

import pytest
import torch

from stalwart.bounds import margin_bound
from stalwart.data import Data, Split
from stalwart.models import build_model
from stalwart.models.param_ramp import ramps
from stalwart.recipes import load_recipe
from stalwart.recipes.runs import Source, load_run, make_model, train
from stalwart.sets import Linf
from stalwart.training import Training, loop
from stalwart.training.loop import Fit
from stalwart.training.validation import validate

SHORT = (
    *("objective.eps=0.05", "training.validation.eps=0.05", "training.validation.attack=null"),
    *("objective.ramp_epochs=5", "training.epochs=10", "training.schedule.milestones=[8]", "training.batch_size=32"),
    "model={name: mlp, widths: [64, 32], init: ibp}",
)
RAMPED = (
    *SHORT,
    "model={name: mlp, widths: [32, 16], activation: param-ramp, eta: 0.01}",
    *("training.epochs=4", "training.limit=200", "objective.ramp_epochs=2", "objective.regularise=0"),
    "training.ramps={switch_on: 2, slope: {start: 0.01, end: 0, begin: 1, over: 2}}",
)


def run(folder, words, resume=False):
    model = train(load_recipe("digits-ibp", words), folder, Source(download=False), resume, "cpu")
    return model, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short")
    return folder, *run(folder, SHORT)


def test_certified_accuracy_rises_well_above_zero(short):
    folder, _, lines = short
    found = [line["validation_certified_accuracy"] for line in lines]
    assert found[0] < 0.05, "clean training certifies nothing"
    assert max(found) > 0.35
    recipe, model, data = load_run(folder, Source(download=False))
    x, y = data.validation.batch(slice(None))
    certified = float((margin_bound(model, x, y, Linf(0.05)) > 0).float().mean())
    assert certified == pytest.approx(max(found), abs=1e-6), "the best epoch by certified accuracy is handed on"
    assert recipe.training.criterion == "certified"


def test_each_epoch_says_which_neurons_are_dead_and_unstable(short):
    _, _, lines = short
    names = {f"{kind}_{i}" for kind in ("dead", "unstable") for i in (1, 2)}
    assert all(names <= line.keys() for line in lines)
    assert all(0 <= line[name] <= 1 for line in lines for name in names)
    assert all(line[f"dead_{i}"] + line[f"unstable_{i}"] <= 1 for line in lines for i in (1, 2))
    assert lines[0]["unstable_2"] > 1.5 * lines[-1]["unstable_2"], "bounds tighten"
    assert not any("ramp_dead" in name for line in lines for name in line)


def test_shares_of_neurons_by_hand():
    model = build_model("mlp", (2,), 2, {"widths": [4], "activation": "param-ramp"})
    with torch.no_grad():
        model.backbone[1].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
        # At x = 0.5 +- 0.1: dead, around 0, around the ramp's end, beyond it.
        model.backbone[1].bias.copy_(torch.tensor([-1.0, -0.5, 0.5, 1.5]))
        model.backbone[2].r.fill_(1.0), model.backbone[2].on.fill_(True)
    split = Split(torch.full((3, 2), 0.5), torch.tensor([0, 1, 0]))
    config = Training(validation={"attack": None, "certify": "ibp", "eps": 0.1}).validation
    found = validate(model, split, config, 0)
    assert (found["dead_1"], found["unstable_1"], found["ramp_dead_1"]) == (0.25, 0.5, 0.25)


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown-lbp", "crown"])
def test_certified_accuracy_counts_every_margin(method):
    model = build_model("mlp", (1,), 3, {"widths": []})
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[0.0], [1.0], [0.0]]))
        model.head.bias.copy_(torch.tensor([0.0, -0.5, -9.0]))
    x = torch.tensor([[0.1], [0.45], [0.55], [0.9], [0.9]])
    split = Split(x, torch.tensor([0, 0, 1, 1, 2]))
    config = Training(validation={"attack": None, "certify": method, "eps": 0.1}).validation
    found = validate(model, split, config, 0)
    assert found["validation_certified_accuracy"] == pytest.approx(2 / 5)
    assert found["validation_accuracy"] == pytest.approx(4 / 5)
    with torch.no_grad():
        model.head.bias[2] = math.nan
    assert validate(model, split, config, 0)["validation_certified_accuracy"] == 0, "NaN certifies nothing"


def test_ramps_are_switched_on_at_their_epoch_and_their_slope_falls(tmp_path, monkeypatch):
    seen = []
    original = Fit._step

    def step(self, *arguments):
        original(self, *arguments)
        (ramp, *_) = ramps(self.model).values()
        seen.append((self.progress.epoch, bool(ramp.on), float(ramp.eta), ramp.r.detach().clone()))

    monkeypatch.setattr(Fit, "_step", step)
    model, lines = run(tmp_path, RAMPED)
    assert [on for _, on, _, _ in seen] == [epoch >= 2 for epoch, *_ in seen]
    each = len(seen) // 4
    expected = [0.01 - 0.005 * min(max(k / each - 1, 0), 2) for k in range(len(seen))]
    assert [eta for _, _, eta, _ in seen] == pytest.approx(expected, abs=1e-8)
    assert all(torch.equal(r, torch.ones_like(r)) for epoch, _, _, r in seen if epoch < 2), "no step moves r before"
    assert not torch.equal(seen[2 * each][3], seen[-1][3]), "it is trained afterwards"
    assert all("ramp_dead_1" in line for line in lines)
    assert lines[0]["ramp_dead_1"] == lines[1]["ramp_dead_1"] == 0
    assert lines[3]["ramp_dead_1"] > 0
    _, again, _ = load_run(tmp_path, Source(download=False))
    assert all(bool(ramp.on) for ramp in ramps(again).values())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_ramps_that_are_never_switched_on_stay_leaky(tmp_path):
    words = [*RAMPED[:-1], "training.ramps={switch_on: 100}", "training.epochs=2", "training.limit=64"]
    model, _ = run(tmp_path, words)
    assert not any(bool(ramp.on) for ramp in ramps(model).values())
    assert all(torch.equal(ramp.r, torch.ones_like(ramp.r)) for ramp in ramps(model).values())


class Killed(BaseException):
    pass


@pytest.mark.parametrize("stop", [3, 8])
def test_a_killed_run_with_ramps_ends_the_same(tmp_path, monkeypatch, stop, same):
    words = [*RAMPED, "training.limit=96", "training.checkpoint_seconds=0"]
    run(tmp_path / "whole", words)
    original, steps = Fit._step, []

    def step(self, *arguments):
        original(self, *arguments)
        steps.append(0)
        if len(steps) == stop:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "_step", step)
        with pytest.raises(Killed):
            run(tmp_path / "killed", words)
    run(tmp_path / "killed", words, resume=True)
    same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"certify": "ibp"}, "certified"),
        ({"certify": "ibp", "attack": None}, "certified"),
        ({}, "robust"),
        ({"attack": None}, "clean"),
    ],
)
def test_what_is_selected_by(values, expected):
    assert Training(validation={"eps": 0.1} | values).criterion == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"select": "certified"}, "needs a validation section with certify"),
        ({"select": "certified", "validation": {"eps": 0.1}}, "needs a validation section with certify"),
        ({"select": "robust", "validation": {"eps": 0.1, "attack": None}}, "needs a validation section with an attack"),
        ({"ramps": {"switch_on": -1}}, "switch_on"),
        ({"ramps": {"slope": {"start": 0.01, "end": 0, "until": 3}}}, "until"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Training(**values)


def test_the_initial_weights_of_a_recipe():
    none = Split(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long))
    data = Data("digits", none, none, none, tuple("0123456789"), (1, 8, 8))
    layer = make_model(load_recipe("digits-ibp"), data).backbone[2]
    assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 * math.pi) / 400, rel=0.05)
    plain = make_model(load_recipe("digits-ibp", ["model.init=default"]), data).backbone[2]
    assert not torch.equal(layer.weight, plain.weight)


def test_the_loop_tells_the_objective_the_time(tmp_path, monkeypatch):
    times = []
    original = loop.Trainee.forward

    def forward(self, x, y, moment):
        times.append(moment.time)
        return original(self, x, y, moment)

    monkeypatch.setattr(loop.Trainee, "forward", forward)
    run(tmp_path, [*SHORT, "training.epochs=2", "training.limit=96"])
    assert times == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3])
