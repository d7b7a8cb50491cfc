"""Confidence intervals and paired differences against closed forms."""

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from scipy.stats import beta

from stalwart.evaluation import Rate
from stalwart.evaluation.findings import gap

counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@hypothesis.settings(deadline=None)
@hypothesis.given(counts)
def test_wilson_by_hand(pair):
    k, n = pair
    rate, p, z = Rate.of(k, n), k / n, 1.959963984540054
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert rate.low == pytest.approx(max(centre - half, 0), abs=1e-9)
    assert rate.high == pytest.approx(min(centre + half, 1), abs=1e-9)
    assert rate.value == p
    assert rate.low <= p + 1e-12
    assert p <= rate.high + 1e-12
    assert (rate.correct, rate.total, rate.method) == (k, n, "wilson")


@hypothesis.settings(deadline=None)
@hypothesis.given(counts)
def test_clopper_pearson_is_the_beta_quantile(pair):
    k, n = pair
    rate = Rate.of(k, n, "clopper-pearson")
    assert rate.low == pytest.approx(beta.ppf(0.025, k, n - k + 1) if k else 0.0, abs=1e-7)
    assert rate.high == pytest.approx(beta.ppf(0.975, k + 1, n - k) if k < n else 1.0, abs=1e-7)


def test_known_numbers():
    rate = Rate.of(81, 263)
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.2553, 0.3662)  # Newcombe 1998, table I, method 3
    exact = Rate.of(81, 263, "clopper-pearson")
    assert (round(exact.low, 4), round(exact.high, 4)) == (0.2527, 0.3676)  # the same table, method 5


@hypothesis.given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_paired_gap_is_sure_beyond_two_standard_errors(pairs):
    better, worse = (torch.tensor(column) for column in zip(*pairs, strict=True))
    n, a, b = len(pairs), sum(p and not q for p, q in pairs), sum(q and not p for p, q in pairs)
    difference, sure = gap(better, worse)
    assert difference == pytest.approx((a - b) / n, abs=1e-6)
    if abs((a - b) - 2 * math.sqrt(a + b)) > 1e-3:
        assert sure == (a - b > 2 * math.sqrt(a + b))
