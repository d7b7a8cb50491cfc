"""Firing rates as a regulariser, against the sum by hand around several objectives."""

import pytest
import torch

from stalwart.core.errors import UsageError
from stalwart.core.random import generator
from stalwart.core.registry import build
from stalwart.models import build_model
from stalwart.objectives import OBJECTIVES, Moment, Trainee

X = torch.rand(6, 1, 8, 8, generator=generator(0))
Y = torch.arange(6) % 3


def made():
    return build_model("lsnn", (1, 8, 8), 3, {"hidden": 12, "repeat": 3}).double()


def objective(name, **options):
    return build("objective", OBJECTIVES, name, options)


BASES = [
    ("natural", {}),
    ("weight-kl", {"steps": 1}),
    ("forward-noise", {}),
    ("trades", {"eps": 0.1, "steps": 1}),
    ("pgd-at", {"eps": 0.1, "steps": 1}),
]


@pytest.mark.parametrize(("base", "options"), BASES)
def test_the_regulariser_is_added_to_any_base(base, options):
    model, x = made(), X.double()
    plain, logits = objective(base, **options).loss(model, x, Y, Moment(3))
    full, again = objective("spike-rates", base=base, options=options, weight=0.5, target=20.0, dt=2.0).loss(
        model, x, Y, Moment(3)
    )
    rates = model.features(x) / 2.0  # spikes a ms
    expected = sum(((row - 0.02) ** 2).sum() for row in rates) / len(rates)
    assert float(expected.detach()) > 0
    torch.testing.assert_close(full - plain, 0.5 * expected)
    torch.testing.assert_close(again, logits)


def test_rates_come_down():
    model, trainee = made(), None
    trainee = Trainee(model, objective("spike-rates", weight=10.0))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    before = float(model.features(X.double()).mean().detach())
    for step in range(30):
        loss, _ = trainee(X.double(), Y, Moment(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(model.features(X.double()).mean().detach()) < 0.6 * before


def test_what_it_cannot_work_with_is_refused():
    with pytest.raises(UsageError, match="needs a model with spiking neurons"):
        objective("spike-rates").penalty(build_model("mlp", (1, 8, 8), 3))
    with pytest.raises(UsageError, match="unknown objective 'x'"):
        objective("spike-rates", base="x")
    for option in ({"weight": -1}, {"target": -1}, {"dt": 0}):
        with pytest.raises(UsageError, match="must be"):
            objective("spike-rates", **option)
