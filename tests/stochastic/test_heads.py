"""Noisy linear heads against their closed forms."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stalwart.core.errors import UsageError
from stalwart.core.random import generator
from stalwart.models import build_model
from stalwart.stochastic import GaussianHead, WCAHead, draw_logits, noise
from stalwart.stochastic.heads import noise_statistics

D, K = 6, 4


def head(**options):
    torch.manual_seed(0)
    return WCAHead(D, K, **options)


def sigma_of(module):
    """Return Sigma from the raw parameters, by the definition in the docstring and in plain float64 loops."""
    raw = module.raw_diagonal.detach().double()
    diagonal = [math.log1p(math.exp(float(one))) + 1e-6 for one in raw]
    factor = torch.zeros(D, D, dtype=torch.float64)
    for i in range(D):
        factor[i, i] = diagonal[i if len(diagonal) > 1 else 0]
        for j in range(i):
            if module.covariance == "full":
                factor[i, j] = float(module.lower[i, j].detach())
    return factor @ factor.T


HEADS = {
    "full": lambda: head(),
    "diagonal": lambda: head(covariance="diagonal"),
    "isotropic": lambda: head(covariance="isotropic"),
    "uniform": lambda: head(init="uniform"),
    "gaussian": lambda: GaussianHead(D, K, std=0.8),
}


@pytest.mark.parametrize("name", HEADS)
def test_mean_and_covariance_of_4096_draws(name):
    module = HEADS[name]()
    features = torch.randn(3, D, generator=generator(1))
    with noise(module, seed=0), torch.no_grad():
        logits = module.draw(features, 4096).double()
    with noise(module, "off"), torch.no_grad():
        mean_network = module(features).double()
    weight = module.linear.weight.detach().double()
    sigma = 0.64 * torch.eye(D).double() if name == "gaussian" else sigma_of(module)
    exact = weight @ sigma @ weight.T
    error = (logits.mean(0) - mean_network).abs() / (exact.diagonal() / 4096).sqrt()
    assert error.max() < 4
    # The three samples share one covariance; together they hold 12,288 draws.
    centred = (logits - logits.mean(0)).reshape(-1, K)
    empirical = centred.T @ centred / len(centred)
    scale = (exact.diagonal()[:, None] * exact.diagonal()[None, :]).sqrt()
    assert ((empirical - exact).abs() / scale).max() < 0.1
    assert torch.allclose(module.logit_covariance().double(), exact, atol=1e-5)


def test_covariance_kinds_have_the_shape_they_claim():
    full, diagonal, isotropic = (HEADS[name]().factor().detach() for name in ("full", "diagonal", "isotropic"))
    assert torch.equal(full, full.tril())
    assert (full.tril(-1) != 0).any()
    assert torch.allclose(full.diagonal(), torch.full((D,), 0.5), atol=1e-5)
    assert torch.equal(diagonal, torch.diag(diagonal.diagonal()))
    torch.manual_seed(0)
    free = WCAHead(D, K, covariance="diagonal", init="uniform").factor().diagonal()
    assert len(set(free.tolist())) == D
    assert len(set(isotropic.diagonal().tolist())) == 1
    assert sum(p.numel() for p in HEADS["isotropic"]().parameters()) == D * K + K + 1
    assert sum(p.numel() for p in HEADS["diagonal"]().parameters()) == D * K + K + D
    ratio = WCAHead(200, K, init="uniform").factor().detach().tril(-1)
    assert 0.4 < ratio[ratio != 0].mean() < 0.6


def pivots(factor):
    """Return the pivots of L L^T in exact arithmetic: all positive if and only if it is positive definite."""
    rows = [[Fraction(float(one)) for one in row] for row in factor]
    sigma = [[sum(a * b for a, b in zip(left, right, strict=True)) for right in rows] for left in rows]
    found = []
    for k in range(len(sigma)):
        found.append(sigma[k][k])
        for i in range(k + 1, len(sigma)):
            share = sigma[i][k] / sigma[k][k]
            sigma[i] = [a - share * b for a, b in zip(sigma[i], sigma[k], strict=True)]
    return found


@pytest.mark.parametrize("covariance", ["full", "diagonal", "isotropic"])
def test_sigma_stays_positive_definite_after_1000_steps_against_it(covariance):
    module = head(covariance=covariance)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(1000):
        optimiser.zero_grad()
        (module.factor().square().sum() + module.alignment() + module.raw_diagonal.sum()).backward()
        optimiser.step()
    factor = module.factor().detach()
    assert factor.isfinite().all()
    assert factor.diagonal().max() < 1e-4, "the optimiser must have pushed it down for this test to mean anything"
    assert factor.diagonal().min() >= 1e-6 * 0.999
    assert min(pivots(factor)) > 0
    assert module.alignment().isfinite()
    assert module(torch.zeros(2, D)).isfinite().all()


@pytest.mark.parametrize("covariance", ["full", "diagonal", "isotropic"])
@pytest.mark.parametrize("centred", [False, True])
def test_regularisers_by_hand(covariance, centred):
    for form in ("sumlog", "logsum"):
        module = head(covariance=covariance, regulariser=form, centred=centred)
        rows = [row.detach().double() for row in module.linear.weight]
        if centred:
            middle = sum(rows) / K
            rows = [row - middle for row in rows]
        sigma = sigma_of(module)
        variances = [sum(float(row[i] * sigma[i, j] * row[j]) for i in range(D) for j in range(D)) for row in rows]
        by_hand = sum(math.log(v) for v in variances) if form == "sumlog" else math.log(sum(variances))
        assert abs(float(module.alignment().detach()) - by_hand) < 1e-5


def test_the_regulariser_trains_weights_and_noise_alike():
    module = head()
    module.alignment().backward()
    assert module.linear.weight.grad.abs().min() > 0
    assert module.raw_diagonal.grad.abs().min() > 0
    below = torch.ones(D, D).tril(-1).bool()
    assert module.lower.grad[below].abs().min() > 0
    assert module.lower.grad[~below].abs().max() == 0


def test_only_the_centred_form_is_blind_to_noise_that_all_logits_share():
    shift = torch.randn(D, generator=generator(3))
    for centred in (False, True):
        module = head(centred=centred)
        before = float(module.alignment().detach())
        with torch.no_grad():
            module.linear.weight += 10 * shift  # the same vector on every row: decisions do not move
        moved = abs(float(module.alignment().detach()) - before)
        assert moved < 1e-3 if centred else moved > 5


def test_noise_statistics_by_hand():
    module = head()
    covariance = (module.linear.weight.double() @ sigma_of(module) @ module.linear.weight.double().T).detach()
    marginal = sum(float(covariance[i, i]) for i in range(K)) / K
    pairs = [
        float(covariance[i, i] + covariance[j, j] - 2 * covariance[i, j])
        for i, j in itertools.permutations(range(K), 2)
    ]
    pairwise = sum(pairs) / len(pairs)
    found = noise_statistics(module)
    assert found["marginal_std"] == pytest.approx(math.sqrt(marginal), rel=1e-5)
    assert found["pairwise_std"] == pytest.approx(math.sqrt(pairwise), rel=1e-5)
    assert found["r"] == pytest.approx(pairwise / (2 * marginal), rel=1e-5)


def test_common_mode_noise_is_unmasked_by_r():
    module = head(covariance="isotropic")
    with torch.no_grad():
        module.linear.weight.copy_(torch.ones(K, D))
        assert noise_statistics(module)["r"] == pytest.approx(0.0, abs=1e-6)
        module.linear.weight.copy_(torch.eye(K, D))
        assert noise_statistics(module)["r"] == pytest.approx(1.0, abs=1e-5)


def test_eot_through_one_backbone_pass_equals_the_loop_over_the_same_draws():
    model = build_model("mlp", (1, 3, 3), K, {"widths": (8, D)}, head=WCAHead)
    x = torch.rand(5, 1, 3, 3, generator=generator(0)).requires_grad_()
    y = torch.tensor([0, 1, 2, 3, 0])
    draws = 7
    assert model.cheap_draws
    with noise(model, seed=3):
        logits = draw_logits(model, x, draws)
    assert logits.shape == (draws, 5, K)
    cheap = sum(F.cross_entropy(one, y, reduction="sum") for one in logits) / draws
    (fast,) = torch.autograd.grad(cheap, x)
    # The loop: the definition W (f + L e) + b, one full backbone pass for each draw's noise.
    with torch.no_grad():
        weight, root = model.head.linear.weight, model.head.factor()
    with noise(model, seed=3):
        e = torch.randn(draws, 5, D, generator=model.head.stream(torch.device("cpu")))
    slow = torch.zeros_like(x)
    for one in e:
        logits = (model.features(x) + one @ root.T) @ weight.T + model.head.linear.bias
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
        slow += gradient / draws
    assert fast.abs().max() > 1e-3
    assert torch.allclose(fast, slow, atol=1e-5, rtol=1e-5)


def test_the_backbone_runs_once_for_many_draws():
    model = build_model("mlp", (9,), K, {"widths": (D,)}, head=WCAHead)
    calls = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    draw_logits(model, torch.rand(2, 9), 50)
    assert len(calls) == 1


def test_the_noise_reaches_the_gradient_of_its_own_parameters():
    module = head()
    module(torch.ones(3, D)).square().sum().backward()
    assert module.raw_diagonal.grad.abs().max() > 0
    assert module.lower.grad.abs().max() > 0


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_a_std_that_is_not_positive_is_refused(std):
    with pytest.raises(UsageError, match="std must be positive"):
        GaussianHead(D, K, std=std)


@pytest.mark.parametrize("name", HEADS)
def test_double_precision_works(name):
    module = nn.Sequential(nn.Linear(3, D), HEADS[name]()).double()
    assert module(torch.zeros(2, 3, dtype=torch.float64)).dtype == torch.float64
