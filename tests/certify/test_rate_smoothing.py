"""Certificates by rate coding: exact probabilities of small functions, the known counter-example, and refusals."""

import pytest
import torch
from torch import nn

from stalwart.certify.rate_smoothing import RateSmoothing
from stalwart.certify.smoothing import lower_bound
from stalwart.core.errors import InputError, UsageError
from stalwart.core.noise import noise
from stalwart.models.classifier import Normalise
from stalwart.spiking import Poisson
from stalwart.stochastic import GaussianHead


class AnyBit(nn.Module):
    """Class 1 where any spike of any step is there."""

    def forward(self, spikes):
        found = (spikes > 0).flatten(2).any(2).any(0).float().unsqueeze(1)
        return torch.cat([1 - found, found], 1)


def test_unanimous_votes_give_the_published_probability():
    assert lower_bound(100, 100, 0.001) == pytest.approx(0.9333, abs=5e-5)


@pytest.mark.parametrize(("signed", "rate"), [(False, 1.0), (False, 0.5), (True, 1.0)])
def test_the_radius_falls_with_the_steps_and_is_halved_by_signs(signed, rate):
    radii = {}
    for steps in (1, 4):
        model = nn.Sequential(Poisson(steps, signed=signed, rate=rate), AnyBit())
        # Black pixels never send a positive spike: every draw votes for class 0.
        found = RateSmoothing(n=100).certify(model, torch.zeros(1, 2))
        assert int(found.prediction) == 0
        assert float(found.p_lower) == pytest.approx(0.9333, abs=5e-5)
        radii[steps] = float(found.radius)
    assert radii[1] == pytest.approx(0.4333 / rate / (2 if signed else 1), abs=1e-4)
    assert radii[4] == pytest.approx(radii[1] / 4)


def test_the_known_counter_example_is_not_certified():
    # P(OR of two bits) = 1 - (1 - x)² is 0.51 at x = 0.3; at x - 0.01 in both pixels, 0.02 in ℓ1, it is 0.496 < 1/2.
    model, x = nn.Sequential(Poisson(1, signed=False), AnyBit()), torch.full((1, 2), 0.3)
    found = RateSmoothing(n=200_000, batch=50_000).certify(model, x)
    assert float(found.p_lower) == pytest.approx(0.51, abs=0.006)
    assert float(found.radius) < 0.02
    # With four steps P(class 1) is 1 - (1 - x)^8; the class is lost where it falls to 1/2.
    model = nn.Sequential(Poisson(4, signed=False), AnyBit())
    found = RateSmoothing(n=20_000, batch=5_000).certify(model, x)
    lost = 2 * (0.3 - (1 - 0.5 ** (1 / 8)))
    assert 0 < float(found.radius) < lost


def test_the_same_seed_gives_the_same_votes():
    model, x = nn.Sequential(Poisson(2, signed=False), AnyBit()), torch.full((3, 4), 0.1)
    one, same, other = (RateSmoothing(n=200).certify(model, x, seed=seed).votes for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_what_the_theorem_is_not_about_is_refused():
    x = torch.full((2, 4), 0.5)
    poisson = nn.Sequential(Poisson(2), AnyBit())
    with noise(poisson, "off"), pytest.raises(InputError, match="only noise is one Poisson encoder"):
        RateSmoothing().certify(poisson, x)
    with pytest.raises(InputError, match="only noise"):
        RateSmoothing().certify(nn.Sequential(Poisson(2), AnyBit(), GaussianHead(2, 2)), x)
    with pytest.raises(InputError, match="pixels themselves"):
        RateSmoothing().certify(nn.Sequential(Normalise([0.5] * 4, [0.5] * 4), Poisson(2), AnyBit()), x)
    with pytest.raises(UsageError, match="cannot certify anything"):
        RateSmoothing(n=5)
    with pytest.raises(UsageError, match="alpha"):
        RateSmoothing(alpha=0.7)
