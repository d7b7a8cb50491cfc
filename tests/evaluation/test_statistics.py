"""Paired comparisons, seeds and numbers of samples against hand values, scipy, published examples and simulations."""

import math

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from scipy import stats

from stalwart.core.errors import InputError, UsageError
from stalwart.evaluation import Rate
from stalwart.evaluation.statistics import (
    Z,
    holm,
    interval_width,
    mcnemar,
    mean_of,
    over_seeds,
    paired,
    paired_interval,
    samples_for_difference,
    samples_for_width,
)

tables = st.tuples(*[st.integers(0, 200)] * 4).filter(any)


def outcomes(a, b, c, d):
    first = torch.tensor([True] * (a + b) + [False] * (c + d))
    second = torch.tensor([True] * a + [False] * b + [True] * c + [False] * d)
    return first, second


def test_mcnemar_by_hand():
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(0, 10) == pytest.approx(2 / 1024)
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(59, 6) == pytest.approx(2 * stats.binom.cdf(6, 65, 0.5))


def test_the_exact_p_nears_the_chi_square_of_many():
    b, c = 460, 540
    assert mcnemar(b, c) == pytest.approx(stats.chi2.sf((abs(b - c) - 1) ** 2 / (b + c), 1), rel=0.01)


def test_a_published_interval():
    low, high = paired_interval(36, 12, 2, 0)  # Newcombe 1998, an example of method 10
    assert (round(low, 4), round(high, 4)) == (0.0569, 0.3404)


@hypothesis.given(tables)
def test_an_interval_holds_the_difference_and_turns_with_the_models(table):
    a, b, c, d = table
    n = sum(table)
    low, high = paired_interval(a, b, c, d)
    assert -1 <= low <= (b - c) / n + 1e-12
    assert (b - c) / n - 1e-12 <= high <= 1
    assert paired_interval(a, c, b, d) == pytest.approx((-high, -low))
    found = paired(*outcomes(*table))
    assert (found.only_first, found.only_second, found.samples) == (b, c, n)
    assert (found.low, found.high) == (low, high)
    assert found.difference == pytest.approx((b - c) / n)
    assert found.p == mcnemar(b, c)


def test_models_that_err_alike_are_told_apart_by_fewer_inputs():
    wide, narrow = paired_interval(360, 240, 200, 200), paired_interval(560, 40, 0, 400)
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


@pytest.mark.parametrize("cells", [(0.5, 0.1, 0.1, 0.3), (0.6, 0.15, 0.05, 0.2), (0.02, 0.03, 0.01, 0.94)])
def test_the_paired_interval_covers(cells):
    """Of 1,500 simulated tables of 200 inputs, 95 % of the intervals hold the true difference, but for chance."""
    drawn = np.random.default_rng(1).multinomial(200, cells, 1500)
    ends = np.array([paired_interval(*map(int, row)) for row in drawn])
    truth = cells[1] - cells[2]
    covered = ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean()
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / 1500) <= covered <= 0.995, covered


def test_mcnemar_keeps_its_level():
    drawn = np.random.default_rng(2).multinomial(300, (0.5, 0.1, 0.1, 0.3), 2000)
    false = np.mean([mcnemar(int(b), int(c)) < 0.05 for _, b, c, _ in drawn])
    assert false <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert false > 0.02


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@hypothesis.given(st.floats(0.01, 0.9), st.floats(0, 1))
def test_needed_samples_are_the_inverse_of_the_width(width, rate):
    needed = samples_for_width(width, rate)
    assert interval_width(rate, needed) <= width
    assert needed == 1 or interval_width(rate, needed - 1) > width


@hypothesis.given(st.integers(0, 500), st.integers(1, 500))
def test_the_width_is_that_of_the_interval(correct, total):
    correct = min(correct, total)
    found = Rate.of(correct, total)
    assert interval_width(correct / total, total) == pytest.approx(found.high - found.low, abs=1e-9)


def test_known_numbers_of_samples():
    assert samples_for_width(0.02) == 9600  # z² / 0.02² - z², rounded up
    assert samples_for_width(0.02, 0.95) < 1900
    assert samples_for_difference(0.02, 0.1) == math.ceil((0.6197951 + 0.2656112) ** 2 / 0.0004)
    # It nears, from above, a sign test of a share (ψ + δ) / 2ψ = 0.6 against 1/2 among the 10 % of inputs that disagree.
    among = (Z * 0.5 + 0.8416212 * math.sqrt(0.6 * 0.4)) ** 2 / 0.1**2
    assert 1 < samples_for_difference(0.02, 0.1) * 0.1 / among < 1.02


def test_the_needed_samples_find_the_difference():
    """With so many inputs McNemar's test finds the difference in 80 % of simulated comparisons (exact, so a little fewer)."""
    difference, disagreement = 0.04, 0.2
    needed = samples_for_difference(difference, disagreement)
    b, c = (disagreement + difference) / 2, (disagreement - difference) / 2
    drawn = np.random.default_rng(3).multinomial(needed, (0.5, b, c, 0.5 - b - c), 2000)
    found = np.mean([mcnemar(int(row[1]), int(row[2])) < 0.05 for row in drawn])
    assert 0.75 < found < 0.83


def test_seeds_by_hand():
    answers = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0]]).bool()
    found = over_seeds(answers)
    assert found.accuracies == [0.75, 0.5, 0.5]
    assert found.mean == pytest.approx(7 / 12)
    seed, item = 4 * np.var([0.75, 0.5, 0.5], ddof=1), 3 * np.var([1, 2 / 3, 0, 2 / 3], ddof=1)
    total = 12 * (7 / 12) * (5 / 12)
    rest = (total - 2 * seed - 3 * item) / 6  # the sum of squares that is left, over (S - 1)(n - 1)
    assert found.within == pytest.approx(rest)
    assert found.between == pytest.approx(max(0, (seed - rest) / 4))
    assert found.inputs == pytest.approx(max(0, (item - rest) / 3))
    half = stats.t.ppf(0.975, 2) * np.std([0.75, 0.5, 0.5], ddof=1) / math.sqrt(3)
    assert found.seeds_low == pytest.approx(max(0.0, 7 / 12 - half))
    assert found.seeds_high == pytest.approx(min(1.0, 7 / 12 + half))


def simulated(seeds, inputs, spread_seed, spread_input, source):
    """Return answers of a mixed model on a logistic scale, and the true mean over all seeds and inputs."""
    centre = 0.4
    a = spread_seed * source.standard_normal((seeds, 1))
    b = spread_input * source.standard_normal((1, inputs))
    share = 1 / (1 + np.exp(-(centre + a + b)))
    return torch.from_numpy(source.random((seeds, inputs)) < share)


@pytest.mark.parametrize(("spread_seed", "spread_input"), [(0.3, 2.0), (0.0, 2.0), (0.8, 0.5)])
def test_the_interval_over_seeds_and_inputs_covers(spread_seed, spread_input):
    source = np.random.default_rng(4)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    wide = math.hypot(spread_seed, spread_input)
    truth = float((weights / (1 + np.exp(-(0.4 + wide * nodes)))).sum() / weights.sum())
    found = [over_seeds(simulated(5, 300, spread_seed, spread_input, source)) for _ in range(300)]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert covered > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 300), covered
    if spread_input == 2.0:
        narrow = np.mean([one.seeds_low <= truth <= one.seeds_high for one in found])
        assert narrow < covered, "seeds alone take these inputs for all there are"


def test_components_of_variance_are_found():
    source = np.random.default_rng(5)
    found = [over_seeds(simulated(6, 400, 0.5, 1.5, source)) for _ in range(60)]
    many = simulated(800, 800, 0.5, 1.5, source).double()
    between = float(many.mean(1).var())
    assert np.mean([one.between for one in found]) == pytest.approx(between, rel=0.25)
    inputs = float(many.mean(0).var())
    assert np.mean([one.inputs for one in found]) == pytest.approx(inputs, rel=0.1)


def test_answers_that_are_all_alike_still_leave_doubt():
    found = over_seeds(torch.ones(3, 50, dtype=torch.bool))
    assert found.mean == 1.0
    assert found.high == 1.0
    assert found.low == pytest.approx(Rate.of(50, 50).low)


def test_the_mean_of_shares():
    values = torch.tensor([0.2, 0.4, 0.9, 1.0])
    found = mean_of(values)
    half = Z * np.std(values.numpy(), ddof=1) / 2
    assert found.value == pytest.approx(0.625)
    assert (found.low, found.high) == pytest.approx((0.625 - half, min(1.0, 0.625 + half)))
    assert mean_of(torch.tensor([0.5])).low == 0.0


def test_what_cannot_be_computed():
    none, one, two = (torch.ones(n, dtype=torch.bool) for n in (0, 1, 2))
    with pytest.raises(InputError, match="at least one input"):
        paired(none, none)
    with pytest.raises(InputError, match="the same inputs, got 1 and 2 of them"):
        paired(one, two)
    with pytest.raises(InputError, match=r"\[S, n\] with two of each or more, got \[1, 5\]"):
        over_seeds(torch.ones(1, 5, dtype=torch.bool))
    for bad in (0.0, 1.0, -0.1):
        with pytest.raises(UsageError, match="a width lies in"):
            samples_for_width(bad)
    with pytest.raises(UsageError, match="a rate lies in"):
        samples_for_width(0.1, 1.5)
    with pytest.raises(UsageError, match="the disagreement lies in"):
        samples_for_difference(0.2, 0.1)
    with pytest.raises(UsageError, match="power lies in"):
        samples_for_difference(0.1, 0.2, 1.0)
    with pytest.raises(UsageError, match="counts are 0 or more"):
        mcnemar(-1, 2)
    with pytest.raises(UsageError, match="not all 0"):
        paired_interval(0, 0, 0, 0)
