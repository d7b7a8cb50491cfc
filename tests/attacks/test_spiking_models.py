"""Attacks on spiking models: the gradient is a choice, the ensemble is at least as strong as each of its members."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import stalwart as sw
from stalwart.attacks.adaptive_surrogate import AdaptiveAtan
from stalwart.attacks.surrogate_ensemble import MEMBERS
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.models import build_model
from stalwart.models.spiking import Spiking
from stalwart.spiking import neurons

WITHIN = sw.Linf(0.15)


@pytest.fixture(scope="module")
def digits():
    """A small spiking network that has learned two noisy patterns, with inputs and labels."""
    source = generator(0)
    patterns = torch.rand(3, 1, 8, 8, generator=source)
    y = torch.randint(3, (120,), generator=source)
    x = (0.6 * patterns[y] + 0.4 * torch.rand(120, 1, 8, 8, generator=source)).clamp(0, 1)
    model = build_model("mlp", (1, 8, 8), 3, {"widths": (32,)}, spiking=Spiking(steps=4))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    model.eval()
    assert (model(x).argmax(1) == y).float().mean() > 0.9
    return model, x[:60], y[:60]


def test_the_ensemble_is_as_strong_as_every_member(digits):
    model, x, y = digits
    assert len(MEMBERS) == 19
    options = {"steps": 5}
    ensemble = sw.attack("surrogate-ensemble", options=options)(model, x, y, within=WITHIN, seed=0)
    assert WITHIN.contains(x, ensemble.x_adv).all()
    assert 0 < int(ensemble.success.sum()) < len(y) + 1
    for member in ("triangle-1", "rectangle-4", "cba"):
        alone = sw.attack("pgd", **options, **MEMBERS[member])(model, x, y, within=WITHIN, seed=0)
        assert ensemble.success.sum() >= alone.success.sum()
    assert (ensemble.cost.backwards[~ensemble.success] >= 19 * 5).all()


def test_the_surrogate_matters_and_is_put_back(digits):
    model, x, y = digits

    def broken(**options):
        return sw.attack("pgd", steps=10, **options)(model, x, y, within=WITHIN, seed=0).success.sum()

    usual = broken()
    assert broken(surrogate={"name": "superspike", "alpha": 1000.0}) < usual
    assert broken() == usual


def test_what_cannot_be_chosen_is_refused(digits):
    _model, x, y = digits
    with pytest.raises(UsageError, match="unknown backward mode 'forwards'"):
        sw.attack("pgd", backward="forwards")
    with pytest.raises(UsageError, match="Did you mean 'atan'"):
        sw.attack("pgd", surrogate="atann")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    for attack in (sw.attack("pgd", surrogate="atan"), sw.attack("surrogate-ensemble")):
        with pytest.raises(InputError, match="no spiking neurons"):
            attack(plain, x, y, within=WITHIN)


def test_a_transfer_may_choose_its_sources_gradient(digits):
    model, x, y = digits
    options = {"steps": 10, "surrogate": {"name": "superspike", "alpha": 1000.0}}
    weak = sw.attack("transfer", source=model, options=options)(model, x, y, within=WITHIN)
    strong = sw.attack("transfer", source=model, options={"steps": 10})(model, x, y, within=WITHIN)
    assert weak.success.sum() < strong.success.sum()


def test_the_adaptive_surrogate_finds_more_than_the_models_own(digits):
    model, x, y = digits
    within = sw.Linf(0.1)
    before = [(layer.surrogate, layer.backward_mode) for layer in neurons(model).values()]
    own = sw.attack("pgd", steps=40)(model, x, y, within=within, seed=0)
    found = sw.attack("adaptive-surrogate", steps=40)(model, x, y, within=within, seed=0)
    assert within.contains(x, found.x_adv).all()
    assert found.success.sum() >= own.success.sum()
    assert 0 < found.success.sum() < len(y)
    assert torch.equal(found.success, model(found.x_adv).argmax(1) != y)
    assert [(layer.surrogate, layer.backward_mode) for layer in neurons(model).values()] == before
    assert not any(layer._forward_hooks for layer in neurons(model).values())


def test_the_sharpness_follows_each_neurons_distance():
    surrogate = AdaptiveAtan(0.425)
    z = torch.tensor([[0.1], [3.0]])
    for _ in range(200):
        surrogate.learns = True
        surrogate.slope(z)
    assert torch.allclose(surrogate.mean, z, atol=1e-3)
    assert surrogate.deviation.max() < 1e-3
    # With D = 0, A of the derivative's mass lies within M on either side: ∫_0^M σ' = atan(π α M / 2) / π = A.
    alpha = surrogate.height / (surrogate.mean + 1.5 * surrogate.deviation + 1e-4)
    assert torch.allclose(torch.atan(torch.pi * alpha * z / 2) / torch.pi, torch.full_like(z, 0.425), atol=2e-3)
    held = surrogate.mean.clone()
    surrogate.slope(5 * z)
    assert torch.equal(surrogate.mean, held), "it learns once a step only"


def test_what_the_adaptive_surrogate_is_not_made_for(digits):
    model, x, y = digits
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    attack = sw.attack("adaptive-surrogate", steps=2)
    with pytest.raises(InputError, match="LIF neurons"):
        attack(plain, x, y, within=WITHIN)
    with pytest.raises(UsageError, match="linf"):
        attack(model, x, y, within=sw.L2(0.5))
    assert not attack.fits(plain, WITHIN)
    assert not attack.fits(model, sw.L2(0.5))
    assert attack.fits(model, WITHIN)
    for bad in ({"steps": 0}, {"mass": 0.5}, {"loss": "targeted-ce"}, {"surrogate": "atan"}):
        with pytest.raises(UsageError):
            sw.attack("adaptive-surrogate", **bad)
