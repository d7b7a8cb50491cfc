"""Which weights a run hands on, when it stops, and what its loop does to them in between: against closed forms."""

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from stalwart.core.errors import TrainingError, UsageError
from stalwart.data import Data, Split
from stalwart.models import build_model
from stalwart.objectives import Moment, Objective
from stalwart.stochastic import WCAHead, inject
from stalwart.training import Fit, Training, checkpoint, loop
from stalwart.training.config import Optimiser, Schedule
from stalwart.training.optimisers import build_optimiser
from stalwart.training.schedules import factor


def data(count=12, width=3):
    x = torch.rand(count, width, generator=torch.Generator().manual_seed(0))
    split = Split(x, torch.arange(count) % 2)
    return Data("made", split, split, split, ("a", "b"), (width,))


def fit(folder, objective=None, **config):
    settings = {"epochs": 5, "batch_size": 4, "optimiser": {"name": "sgd", "lr": 0.5, "momentum": 0.0}} | config
    model = build_model("mlp", (3,), 2, {"widths": ()})
    return Fit(model, objective or Objective(), data(), Training(**settings), folder)


def snapshots(monkeypatch, job, scores, key="validation_accuracy"):
    """Feed ``scores`` as validation results and keep a copy of the weights that each was given for."""
    seen = []

    def validate(model, split, config, seed):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"validation_accuracy": 0.5} | {key: scores[len(seen) - 1]}

    monkeypatch.setattr(loop, "validate", validate)
    return seen


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("scores", "best"),
    [([0.1, 0.9, 0.3, 0.4, 0.2], 1), ([0.5, 0.5, 0.5, 0.5, 0.5], 0), ([0.0, 0.1, 0.2, 0.3, 0.4], 4), ([0.0] * 5, 0)],
)
@pytest.mark.parametrize("select", ["clean", "robust", "last"])
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_best_epoch_is_handed_on(scores, best, select, ema, monkeypatch, tmp_path):
    extra = {"validation": {"eps": 0.1}} if select == "robust" else {}
    job = fit(tmp_path, select=select, ema=ema, **extra)
    key = "validation_robust_accuracy" if select == "robust" else "validation_accuracy"
    seen = snapshots(monkeypatch, job, scores, key)
    progress = job.run()
    chosen = 4 if select == "last" else best
    assert progress.best_epoch == chosen + 1
    assert equal(job.model.state_dict(), seen[chosen])
    assert not any(equal(seen[chosen], other) for i, other in enumerate(seen) if i != chosen)
    from safetensors.torch import load_file

    assert equal(load_file(tmp_path / "model.safetensors"), seen[chosen])


class Watched(Objective):
    """An objective whose watch says what it is told to, and counts on which samples it is asked."""

    fall = 0.2

    def __init__(self, values):
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "asked", [])

    def watch(self, model, x, y, moment):
        self.asked.append((x.clone(), {name: t.clone() for name, t in model.state_dict().items()}))
        return self.values[len(self.asked) - 1]


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_fall_stops_the_run_and_restores_the_weights(ema, monkeypatch, tmp_path):
    watched = Watched([0.6, 0.65, 0.40, 0.9, 0.9])
    job = fit(tmp_path, watched, select="last", ema=ema)
    seen = snapshots(monkeypatch, job, [0.1, 0.2, 0.3, 0.4, 0.5])
    progress = job.run()
    assert progress.epoch == 3
    assert "fell from 0.650 to 0.400" in progress.stopped
    assert progress.best_epoch == 2
    assert equal(job.model.state_dict(), seen[1])
    assert not equal(seen[1], seen[2])
    assert all(torch.equal(x, watched.asked[0][0]) for x, _ in watched.asked), "other samples are another measurement"
    assert progress.history[-1]["stopped"] == progress.stopped
    assert [line["watched_accuracy"] for line in progress.history] == [0.6, 0.65, 0.40]
    again = fit(tmp_path, watched, select="last", ema=ema)
    assert again.run(resume=True).epoch == 3, "a run that stopped stays stopped"


def test_a_slow_decline_and_a_fall_within_the_limit_do_not_stop(monkeypatch, tmp_path):
    watched = Watched([0.9, 0.71, 0.52, 0.33, 0.14])
    job = fit(tmp_path, watched)
    snapshots(monkeypatch, job, [0.1] * 5)
    assert job.run().stopped is None


def test_a_fall_after_the_best_epoch_keeps_the_best(monkeypatch, tmp_path):
    job = fit(tmp_path, Watched([0.6, 0.65, 0.60, 0.3]))
    seen = snapshots(monkeypatch, job, [0.9, 0.2, 0.3, 0.99, 0.1])
    progress = job.run()
    assert progress.epoch == 4
    assert progress.best_epoch == 1
    assert equal(job.model.state_dict(), seen[0])


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_the_moving_average_in_closed_form(decay, tmp_path, monkeypatch):
    job = fit(tmp_path, ema=decay, epochs=2, select="last")
    start = job.model.head.weight.detach().clone()
    trace = []
    original = Fit._update_average

    def update(own):
        trace.append(own.model.head.weight.detach().clone())
        original(own)

    monkeypatch.setattr(Fit, "_update_average", update)
    job.run()
    n = len(trace)
    assert n == 6
    expected = decay**n * start + sum((1 - decay) * decay ** (n - 1 - i) * w for i, w in enumerate(trace))
    assert torch.allclose(job.average.head.weight, expected, atol=1e-6)
    assert not torch.allclose(trace[-1], expected, atol=1e-4)


def test_a_step_of_sgd_by_hand(tmp_path):
    job = fit(tmp_path, epochs=1, batch_size=12, ema=0.0, select="last")
    w, b = job.model.head.weight.detach().clone(), job.model.head.bias.detach().clone()
    x, y = data().train.x, data().train.y
    gradient = (torch.softmax(x @ w.T + b, 1) - nn.functional.one_hot(y, 2)) / 12
    job.run()
    assert torch.allclose(job.model.head.weight, w - 0.5 * gradient.T @ x, atol=1e-6)
    assert torch.allclose(job.model.head.bias, b - 0.5 * gradient.sum(0), atol=1e-6)


def test_clipping_limits_the_step(tmp_path):
    job = fit(tmp_path, epochs=1, batch_size=12, optimiser={"name": "sgd", "lr": 1.0, "momentum": 0, "clip": 0.01})
    before = [p.detach().clone() for p in job.model.parameters()]
    job.run()
    length = math.sqrt(
        sum(float((p.detach() - q).square().sum()) for p, q in zip(job.model.parameters(), before, strict=True))
    )
    assert length == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    class Diverging(Objective):
        def penalty(self, model):
            return torch.tensor(math.nan if len(steps) == 4 else 0.0)

    steps = []
    job = fit(tmp_path, Diverging(), checkpoint_seconds=0)
    job.advance = lambda done, note: steps.append(done)
    with pytest.raises(TrainingError, match=r"loss became nan at step 4 \(epoch 2\); lower the learning rate"):
        job.run()
    assert not (tmp_path / "model.safetensors").exists()
    assert checkpoint.load(tmp_path, "")[1].step == 4, "the last good checkpoint is kept"


def test_metrics_count_what_was_trained_on(tmp_path):
    progress = fit(tmp_path, epochs=2, batch_size=5).run()
    model = fit(tmp_path / "other").model
    assert [line["step"] for line in progress.history] == [2, 4], "the incomplete last batch is left out"
    assert len(list(model.parameters())) == 2
    for line in progress.history:
        assert line["train_accuracy"] * 10 == pytest.approx(round(line["train_accuracy"] * 10))


# Schedules


@hypothesis.given(st.floats(0, 1, exclude_max=True), st.integers(1, 300), st.floats(0.05, 0.95), st.floats(0, 5))
def test_schedules_in_closed_form(share, epochs, peak, warmup):
    time = share * epochs
    warm = min(1.0, time / warmup) if warmup > 0 else 1.0
    assert factor(Schedule(name="constant", warmup=warmup), time, epochs) == pytest.approx(warm)
    cosine = warm * (1 + math.cos(math.pi * share)) / 2
    assert factor(Schedule(name="cosine", warmup=warmup), time, epochs) == pytest.approx(cosine, abs=1e-9)
    cyclic = min(share / peak, (1 - share) / (1 - peak))
    assert factor(Schedule(name="cyclic", peak=peak), time, epochs) == pytest.approx(cyclic, abs=1e-9)


@pytest.mark.parametrize(
    ("time", "expected"), [(0.0, 1), (199.99, 1), (200.0, 0.1), (399.9, 0.1), (400.0, 0.01), (599.0, 0.01)]
)
def test_steps_fall_at_their_milestones(time, expected):
    schedule = Schedule(name="step", milestones=(200, 400), gamma=0.1)
    assert factor(schedule, time, 600) == pytest.approx(expected)


def test_the_loop_sets_the_scheduled_rate(tmp_path, monkeypatch):
    rates = []
    original = torch.optim.SGD.step

    def step(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return original(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    job = fit(tmp_path, epochs=2, schedule={"name": "cosine"})
    job.run()
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 6)) / 2 for k in range(6)])


# Optimisers


def decaying(optimiser):
    return {id(p) for group in optimiser.param_groups if group["weight_decay"] > 0 for p in group["params"]}


def everything(optimiser):
    return [id(p) for group in optimiser.param_groups for p in group["params"]]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_which_parameters_decay(name):
    model = build_model("small-cnn", (1, 8, 8), 10, head=WCAHead)
    parameters = dict(model.named_parameters())
    expected = {
        "all": set(parameters),
        "head": {key for key in parameters if key.startswith("head.")},
        "weights": {key for key in parameters if parameters[key].dim() > 1},
    }
    assert {"head.linear.weight", "head.linear.bias", "head.raw_diagonal", "head.lower"} == expected["head"]
    for decay, names in expected.items():
        optimiser = build_optimiser(Optimiser(name=name, weight_decay=0.1, decay=decay), model)
        assert decaying(optimiser) == {id(parameters[key]) for key in names}
        assert sorted(everything(optimiser)) == sorted(map(id, parameters.values()))


@pytest.mark.parametrize("decay", ["all", "head", "weights"])
def test_the_strength_of_weight_noise_never_decays(decay):
    model = inject(build_model("small-cnn", (1, 8, 8), 10))
    optimiser = build_optimiser(Optimiser(weight_decay=0.1, decay=decay), model)
    alphas = {id(p) for name, p in model.named_parameters() if name.endswith("alpha")}
    assert len(alphas) == 5
    assert not alphas & decaying(optimiser)
    assert decaying(optimiser)
    assert alphas <= set(everything(optimiser))


def test_decay_of_a_head_needs_a_head():
    with pytest.raises(UsageError, match="needs a model with a head, which Linear has not"):
        build_optimiser(Optimiser(decay="head"), nn.Linear(2, 2))


def test_frozen_parameters_are_left_alone(tmp_path):
    job = fit(tmp_path)
    job.model.head.bias.requires_grad_(False)
    assert len(everything(build_optimiser(Optimiser(), job.model))) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"select": "robust"}, "needs a validation section"),
        ({"schedule": {"name": "step"}}, "needs milestones"),
        ({"schedule": {"name": "cosine", "milestones": [1]}}, "belong to the 'step' schedule"),
        ({"ema": 1.0}, "less than 1"),
        ({"optimiser": {"lr": 0}}, "greater than 0"),
        ({"epochs": -1}, "greater than or equal to 0"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Training(**values)


def test_a_moment_gives_the_same_numbers_twice():
    like = torch.zeros(4)
    draws = [torch.rand(4, generator=Moment(3).generator(like, what)) for what in ("a", "a", "b")]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_without_validation_samples_nothing_can_be_selected(tmp_path):
    made = data()
    bare = Data("made", made.train, made.validation.take(0), made.test, made.classes, made.shape)
    model = build_model("mlp", (3,), 2, {"widths": ()})
    with pytest.raises(UsageError, match="validation samples"):
        Fit(model, Objective(), bare, Training(epochs=1), tmp_path)
    Fit(model, Objective(), bare, Training(epochs=1, select="last"), tmp_path).run()


def test_weights_that_are_not_finite_are_never_written(tmp_path, monkeypatch):
    job = fit(tmp_path, epochs=1, select="last")

    def poisoned(*args):
        Fit._step(job, *args)
        if job.progress.batch == 3:  # the last batch: no later loss can give it away
            with torch.no_grad():
                next(job.model.parameters()).fill_(math.nan)

    monkeypatch.setattr(job, "_step", poisoned)
    with pytest.raises(TrainingError, match="finite"):
        job.run()
    assert not checkpoint.path_of(tmp_path).exists()
    assert not (tmp_path / "model.safetensors").exists()
