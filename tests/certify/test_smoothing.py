"""Randomised smoothing against closed forms: linear models, exact tests of the binomial, simulated coverage."""

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, kstest, norm
from torch import nn

from stalwart.certify.smoothing import ABSTAIN, Smoothing, lower_bound, two_sided
from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.spiking import Poisson
from stalwart.stochastic import inject, noise


class Halfspace(nn.Module):
    """Class 1 beyond ``border`` in the first coordinate, class 0 before it; what it saw is kept."""

    def __init__(self, border):
        super().__init__()
        self.border, self.seen = border, []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        score = x.flatten(1)[:, 0] - self.border
        return torch.stack([-score, score], 1)


def linear(weight, bias):
    layer = nn.Linear(len(weight[0]), len(weight)).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight, dtype=torch.float64))
        layer.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return layer


def distances(model, x):
    """Return how far x is from the nearest change of a linear model's decision, and that decision."""
    w, b = model.weight.detach(), model.bias.detach()
    z = x @ w.T + b
    top = z.argmax(1)
    gaps = z.gather(1, top[:, None]) - z
    lengths = (w[top][:, None] - w).norm(dim=2)
    return torch.where(lengths > 0, gaps / lengths.clamp_min(1e-300), math.inf).amin(1), top


@pytest.mark.parametrize("sigma", [0.1, 0.25])
def test_the_radius_of_a_linear_classifier(sigma):
    """The smoothed linear classifier is the linear classifier: R is at most the distance, and nearly all of it."""
    model = linear([[3.0, 0.0, 1.0], [0.0, 3.0, 1.0]], [0.2, 0.2])
    shares = torch.tensor([0.15, 0.7, 1.95], dtype=torch.float64)
    x = torch.full((3, 3), 0.5, dtype=torch.float64)
    x[:, 0] += shares * sigma / math.sqrt(2)
    x[:, 1] -= shares * sigma / math.sqrt(2)
    distance = distances(model, x)[0]
    assert torch.allclose(distance, shares * sigma)
    # A million votes: of the smallest distance a hundred thousand would leave 8 % unproved.
    result = Smoothing(sigma, n=1_000_000, batch=4096).certify(model, x)
    assert (result.prediction == 0).all()
    assert (result.radius <= distance).all()
    assert (result.radius >= 0.95 * distance).all()


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 6), st.floats(0.05, 1.0))
def test_no_linear_classifier_gets_more_than_its_distance(seed, classes, width, sigma):
    source = generator(seed, "net")
    model = linear(torch.randn(classes, width, generator=source).tolist(), torch.zeros(classes).tolist())
    x = torch.rand(3, width, generator=source, dtype=torch.float64)
    result = Smoothing(sigma, n=400, alpha=1e-9).certify(model, x, seed)
    distance, top = distances(model, x)
    proved = result.prediction != ABSTAIN
    assert (result.radius <= distance + 1e-12).all()
    assert torch.equal(result.prediction[proved], top[proved])
    assert (result.radius[proved] > 0).all()
    assert (result.radius[~proved] == 0).all()
    assert (result.radius <= Smoothing(sigma, n=400, alpha=1e-9).largest_radius).all()


@hypothesis.settings(deadline=None)
@hypothesis.given(
    st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(1e-6, 0.4)
)
def test_the_lower_bound_is_clopper_and_pearsons(pair, alpha):
    k, n = pair
    found = lower_bound(k, n, alpha)
    assert found == pytest.approx(
        float(binomtest(k, n, alternative="greater").proportion_ci(1 - alpha, method="exact").low), abs=1e-9
    )
    assert found <= k / n
    if k:
        assert binom.sf(k - 1, n, found) == pytest.approx(alpha, rel=1e-6)


@hypothesis.settings(deadline=None)
@hypothesis.given(st.integers(0, 3000).flatmap(lambda n: st.tuples(st.integers((n + 1) // 2, n), st.just(n))))
def test_the_test_of_prediction_is_the_binomial_one(pair):
    k, n = pair
    assert two_sided(k, n) == pytest.approx(float(binomtest(k, n).pvalue) if n else 1.0, rel=1e-9)


@pytest.mark.parametrize(("share", "n", "alpha"), [(1.0, 60, 0.1), (0.4, 200, 0.05), (2.0, 120, 0.2)])
def test_at_most_alpha_of_the_certificates_are_false(share, n, alpha):
    """In a model whose probability is known, the radius exceeds the true one exactly as often as the binomial says."""
    sigma, runs = 0.2, 1500
    model = Halfspace(0.5 + share * sigma)
    x = torch.full((1, 1), 0.5).expand(runs, 1)
    result = Smoothing(sigma, n0=50, n=n, alpha=alpha, batch=256).certify(model, x)
    p = norm.cdf(share)
    judged = result.guess == 0  # the others are wrong guesses, which abstain
    assert judged.float().mean() > 0.99
    assert (result.prediction[~judged] == ABSTAIN).all()
    false = int((result.radius > share * sigma).sum())
    least = next(k for k in range(n + 1) if lower_bound(k, n, alpha) > p) if lower_bound(n, n, alpha) > p else n + 1
    expected = float(binom.sf(least - 1, n, p))
    assert expected <= alpha
    low, high = binom.ppf([1e-5, 1 - 1e-5], runs, expected)
    assert low <= false <= high


def test_votes_are_those_of_gaussian_noise():
    sigma, n = 0.3, 20_000
    model = Halfspace(0.8)
    x = torch.tensor([[0.5, 0.2], [0.9, 0.1]])
    result = Smoothing(sigma, n=n).certify(model, x)
    p = norm.cdf([0.3 / sigma, 0.1 / sigma])
    assert result.guess.tolist() == [0, 1]
    for votes, q in zip(result.votes.tolist(), p, strict=True):
        assert abs(votes - n * q) < 5 * math.sqrt(n * q * (1 - q))


def test_noise_is_fresh_unclipped_and_normal():
    sigma, model = 0.25, Halfspace(0.5)
    x = torch.tensor([[0.0, 1.0, 0.5, 0.25]])
    Smoothing(sigma, n0=200, n=1000, batch=128).certify(model, x, seed=3)
    seen = torch.cat([batch for batch in model.seen if len(batch) > 1])
    assert len(seen) == 1200
    offsets = (seen - x) / sigma
    assert len(offsets.unique(dim=0)) == 1200, "the draws that choose the class are not used to certify it"
    assert kstest(offsets.flatten().double().numpy(), "norm").pvalue > 1e-3
    assert (offsets.T.corrcoef() - torch.eye(4)).abs().max() < 0.15
    assert 0.4 < float((seen[:, 0] < 0).float().mean()) < 0.6, "nothing is clipped"
    assert 0.4 < float((seen[:, 1] > 1).float().mean()) < 0.6


def test_a_coin_is_not_certified():
    model, x = Halfspace(0.5), torch.full((300, 2), 0.5)
    result = Smoothing(0.25, n=300, alpha=0.001).certify(model, x)
    assert int((result.prediction == ABSTAIN).sum()) >= 297
    assert (result.radius[result.prediction == ABSTAIN] == 0).all()
    predicted = Smoothing(0.25, n=300, alpha=0.001).predict(model, x)
    assert int((predicted == ABSTAIN).sum()) >= 297


class Undecided(nn.Module):
    """Gives tied or NaN logits on noisy inputs, plain ones on the clean input 0.5."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        plain = torch.tensor([1.0, 0.0, 0.0]).expand(len(x), 3)
        return torch.where((x == 0.5).all(1, keepdim=True), plain, torch.full((len(x), 3), self.value))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_ties_and_nan_count_for_no_class(value):
    result = Smoothing(0.25, n=100).certify(Undecided(value), torch.full((2, 2), 0.5))
    assert result.prediction.tolist() == [ABSTAIN] * 2
    assert result.votes.tolist() == [0, 0]
    assert result.p_lower.tolist() == [0, 0]
    assert Smoothing(0.25).predict(Undecided(value), torch.full((2, 2), 0.5), n=100).tolist() == [ABSTAIN] * 2


def test_prediction():
    x = torch.tensor([[0.5], [0.45], [0.2]])
    assert Smoothing(0.25).predict(Halfspace(0.4), x, n=2000, alpha=0.01).tolist() == [1, 1, 0]
    assert Smoothing(0.25, n=2000, alpha=0.01).predict(Halfspace(0.4), x).tolist() == [1, 1, 0]
    wrong = 0
    for seed in range(300):
        predicted = Smoothing(0.25).predict(Halfspace(0.4), torch.tensor([[0.41]]), n=40, alpha=0.1, seed=seed)
        wrong += int(predicted[0] == 0)
    assert wrong <= binom.ppf(1 - 1e-5, 300, 0.1)


@hypothesis.given(st.floats(1e-12, 0.49))
def test_the_fewest_draws_that_can_certify(alpha):
    fewest = next(n for n in range(1, 60) if alpha ** (1 / n) > 0.5 + 1e-12)
    with pytest.raises(UsageError, match=f"it takes at least {fewest}"):
        Smoothing(0.5, n=fewest - 1, alpha=alpha)
    assert Smoothing(0.5, n=fewest, alpha=alpha).largest_radius > 0
    result = Smoothing(0.5, n=fewest, alpha=alpha).certify(Halfspace(1e9), torch.full((1, 1), 0.5))
    assert result.prediction.tolist() == [0]
    assert float(result.radius) == pytest.approx(0.5 * norm.ppf(alpha ** (1 / fewest)), abs=1e-9)


def test_the_default_cap():
    assert Smoothing(1.0).largest_radius == pytest.approx(3.8115, abs=1e-4)


def test_the_fewest_draws_that_can_predict():
    model, x = Halfspace(1e9), torch.full((1, 1), 0.5)
    with pytest.raises(UsageError, match="it takes at least 11"):
        Smoothing(0.5).predict(model, x, n=10)
    assert Smoothing(0.5).predict(model, x, n=11).tolist() == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": math.nan}, "sigma"),
        ({"sigma": math.inf}, "sigma"),
        ({"sigma": 0.5, "n0": 0}, "n0"),
        ({"sigma": 0.5, "n": 9}, "at least 10"),
        ({"sigma": 0.5, "alpha": 0.0}, "alpha"),
        ({"sigma": 0.5, "alpha": 0.5}, "alpha"),
        ({"sigma": 0.5, "batch": 0}, "batch"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(UsageError, match=message):
        Smoothing(**options)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()


@pytest.fixture
def images():
    return torch.rand(4, 1, 6, 6, generator=generator(5), dtype=torch.float64)


@pytest.mark.parametrize("batch", [1, 7, 64, 100, 1000])
def test_the_batch_size_changes_nothing(net, images, batch):
    one = Smoothing(0.5, n0=70, n=333).certify(net, images)
    two = Smoothing(0.5, n0=70, n=333, batch=batch).certify(net, images)
    for field in ("prediction", "radius", "guess", "votes", "p_lower"):
        assert torch.equal(getattr(one, field), getattr(two, field))
    assert torch.equal(
        Smoothing(0.5).predict(net, images, n=333), Smoothing(0.5, batch=batch).predict(net, images, n=333)
    )


def test_seed_and_index_fix_the_noise(net, images):
    whole = Smoothing(0.5, n=300).certify(net, images, seed=2)
    again = Smoothing(0.5, n=300).certify(net, images, seed=2)
    part = Smoothing(0.5, n=300).certify(net, images[[3, 1]], seed=2, index=[3, 1])
    other = Smoothing(0.5, n=300).certify(net, images, seed=3)
    assert torch.equal(whole.votes, again.votes)
    assert torch.equal(whole.votes[[3, 1]], part.votes)
    assert not torch.equal(whole.votes, other.votes)
    same = Smoothing(0.5, n=300).certify(net, images[:1].expand(4, -1, -1, -1))
    assert len(same.votes.unique()) > 1, "each sample has noise of its own"


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)
    )
    model.train()
    model[1].eval()
    model[5].weight.requires_grad_(False)
    x = torch.rand(2, 1, 6, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes, needs = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    randomness, kept = torch.get_rng_state(), x.clone()
    Smoothing(0.25, n=100).certify(model, x)
    Smoothing(0.25, n=100).predict(model, x)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == needs
    assert torch.equal(torch.get_rng_state(), randomness)
    assert torch.equal(x, kept)
    assert torch.is_grad_enabled()


def test_randomised_models_are_refused_until_their_noise_is_settled():
    torch.manual_seed(0)
    # Noise on weights is shared by the batch.
    model = inject(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), alpha=0.5)
    x = torch.rand(2, 4)
    with pytest.raises(UsageError, match="deterministic model"):
        Smoothing(0.25, n=100).certify(model, x)
    with noise(model, "off"):
        Smoothing(0.25, n=100).certify(model, x)
    with noise(model, "fixed", seed=0):
        Smoothing(0.25, n=100).predict(model, x)


def test_noise_of_each_sample_takes_part_in_the_vote():
    class Mean(nn.Module):
        def forward(self, spikes):
            spikes = spikes.mean((0, 2)).unsqueeze(1) - 0.5
            return torch.cat([spikes, -spikes], 1)

    # Eleven pixels of 0.52: nearly even votes by the coding alone, sure ones by its mean.
    model, x = nn.Sequential(Poisson(1, signed=False), Mean()), torch.full((1, 11), 0.52)
    smoothing = Smoothing(0.001, n=2000)
    found = smoothing.certify(model, x, seed=1)
    assert 0.4 < float(found.votes[0]) / 2000 < 0.75
    assert torch.equal(found.votes, smoothing.certify(model, x, seed=1).votes)
    with noise(model, "off"):
        assert int(smoothing.certify(model, x).votes[0]) == 2000


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (Halfspace(0.5), torch.full((1, 2), math.nan), "NaN"),
        (Halfspace(0.5), torch.full((1, 2), 255.0), r"must lie in \[0, 1\]"),
        (Halfspace(0.5), torch.ones(1, 2, dtype=torch.uint8), "must be floats"),
        (nn.Flatten(0), torch.ones(1, 2), "logits"),
        (Halfspace(math.nan), torch.ones(1, 2), "NaN or infinite"),
    ],
)
def test_what_cannot_be_smoothed(model, x, message):
    with pytest.raises(InputError, match=message):
        Smoothing(0.25, n=100).certify(model, x)


def test_one_index_an_input(net, images):
    with pytest.raises(UsageError, match="3 index numbers for 4 inputs"):
        Smoothing(0.25, n=100).certify(net, images, index=[0, 1, 2])
