"""What rates allow to conclude: two models on the same inputs, several training seeds, and how many inputs it takes.

All functions are pure; outcomes are booleans, True where a model answered an input rightly. Intervals are at 95 %.
"""

import math

from torch import Tensor

from stalwart.core.errors import InputError
from stalwart.core.numbers import require
from stalwart.evaluation.results import Rate, Record

Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


class Mean(Record):
    """A mean in [0, 1] with a 95 % interval over the inputs."""

    value: float
    low: float
    high: float


class PairedDifference(Record):
    """How much more often one model is right than another, on the same inputs.

    Attributes:
        samples: inputs.
        only_first: how many the first model alone answers rightly.
        only_second: how many the second model alone answers rightly.
        difference: accuracy of the first minus accuracy of the second, in [-1, 1].
        low: lower end of the 95 % interval of the difference.
        high: upper end of it.
        p: chance of a difference at least as large if both were equally good (McNemar's exact test, two-sided).
    """

    samples: int
    only_first: int
    only_second: int
    difference: float
    low: float
    high: float
    p: float


class OverSeeds(Record):
    """Accuracy of a way of training, from networks of several seeds on the same inputs.

    Attributes:
        seeds: how many.
        samples: inputs, the same under every seed.
        mean: over seeds and inputs.
        low: lower end of the 95 % interval of the mean, for other seeds and other inputs.
        high: upper end of it.
        seeds_low: lower end of the 95 % interval for other seeds on these very inputs, Student's t over the seeds.
        seeds_high: upper end of it.
        accuracies: of each seed.
        between: variance between seeds, of their true accuracies.
        inputs: variance between inputs: how much harder some are than others.
        within: variance that is left of a single answer: what seed and input do together.
    """

    seeds: int
    samples: int
    mean: float
    low: float
    high: float
    seeds_low: float
    seeds_high: float
    accuracies: list[float]
    between: float
    inputs: float
    within: float


def mean_of(shares: Tensor) -> Mean:
    """Return the mean of shares [N] in [0, 1], one an input, with its 95 % interval by the normal approximation.

    Raises:
        InputError: no shares.
    """
    _require_outcomes(shares)
    values = shares.double()
    mean = float(values.mean())
    half = Z * float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 1.0
    return Mean(value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p of McNemar's exact test.

    Where both models are equally good, an input that one of them alone answers rightly is either's with chance 1/2:

        p = min(1, 2 P[X <= min(b, c)]),  X ~ Binomial(b + c, 1/2)

    Args:
        only_first: b, inputs that the first alone answers rightly.
        only_second: c, inputs that the second alone answers rightly.

    Raises:
        UsageError: a negative count.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947; exact: Liddell,
    "Simplified exact analysis of case-referent studies", 1983.

    Example:
        >>> mcnemar(1, 5)
        0.21875
    """
    from scipy.stats import binomtest  # takes longer to import than all the rest

    require(min(only_first, only_second) >= 0, f"counts are 0 or more, got {only_first} and {only_second}.")
    disagreements = only_first + only_second
    return float(binomtest(only_first, disagreements).pvalue) if disagreements else 1.0


def paired_interval(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two accuracies on the same inputs.

    With p, [l, u] each model's accuracy and Wilson interval, and φ the correlation of their outcomes,

        low  = p1 - p2 - sqrt((p1 - l1)² - 2 φ (p1 - l1)(u2 - p2) + (u2 - p2)²)
        high = p1 - p2 + sqrt((p2 - l2)² - 2 φ (p2 - l2)(u1 - p1) + (u1 - p1)²)

    where a positive φ is counted with a correction for continuity.

    Args:
        both: inputs that both answer rightly.
        only_first: inputs that the first alone answers rightly.
        only_second: inputs that the second alone answers rightly.
        neither: inputs that both get wrong.

    Raises:
        UsageError: no inputs, or a negative count.

    Source: Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data",
    1998, method 10.
    """
    a, b, c, d = both, only_first, only_second, neither
    n = a + b + c + d
    require(min(a, b, c, d) >= 0 and n > 0, f"counts are 0 or more and not all 0, got {a}, {b}, {c} and {d}.")
    first, second = Rate.of(a + b, n), Rate.of(a + c, n)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    together = a * d - b * c
    corrected = float(max(together - n / 2, 0)) if together > 0 else float(together)
    phi = corrected / math.sqrt(margins) if margins else 0.0
    down1, up1 = first.value - first.low, first.high - first.value
    down2, up2 = second.value - second.low, second.high - second.value
    difference = first.value - second.value
    low = difference - math.sqrt(max(0.0, down1**2 - 2 * phi * down1 * up2 + up2**2))
    high = difference + math.sqrt(max(0.0, down2**2 - 2 * phi * down2 * up1 + up1**2))
    return max(-1.0, low), min(1.0, high)


def paired(first: Tensor, second: Tensor) -> PairedDifference:
    """Compare two models on the same inputs.

    Args:
        first: outcomes [N] bool of the first.
        second: outcomes [N] bool of the second, in the same order.

    Raises:
        InputError: no inputs, or different numbers of them.

    Example:
        >>> found = paired(torch.tensor([True, True, False, True]), torch.tensor([True, False, False, False]))
        >>> found.difference, found.p
        (0.5, 0.5)
    """
    _require_outcomes(first)
    if first.shape != second.shape:
        raise InputError(f"paired outcomes need the same inputs, got {len(first)} and {len(second)} of them.")
    first, second = first.bool(), second.bool()
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    low, high = paired_interval(both, only_first, only_second, neither)
    return PairedDifference(
        samples=len(first),
        only_first=only_first,
        only_second=only_second,
        difference=(only_first - only_second) / len(first),
        low=low,
        high=high,
        p=mcnemar(only_first, only_second),
    )


def holm(p: list[float]) -> list[float]:
    """Return p of several tests, adjusted so that under 5 % of such families hold a false finding below 0.05.

        p'_(i) = max over j <= i of min(1, (m - j + 1) p_(j)),  p in rising order

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Example:
        >>> holm([0.5, 0.25])
        [0.5, 0.5]
    """
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted


def over_seeds(outcomes: Tensor) -> OverSeeds:
    """Return mean, spread and interval over training seeds whose networks answered the same inputs.

    Seeds and inputs are two random factors, crossed: answer = mean + seed + input + rest. With the mean squares of seeds,
    inputs and rest the components are

        between = (MS_seed - MS_rest) / n,  inputs = (MS_input - MS_rest) / S,  within = MS_rest

    none below 0, and the mean has variance between/S + inputs/n + within/(S n), with Satterthwaite's degrees of freedom. An
    interval from the seeds alone would take these inputs for all there are; with inputs of their own for each seed it would
    be the nested design.

    Args:
        outcomes: [S, n] bool, S >= 2 seeds by n >= 2 inputs.

    Raises:
        InputError: fewer than two seeds or inputs.

    Source: Searle, Casella and McCulloch, "Variance components", 1992, section 4.7 (two crossed random factors, one
    observation a cell); Satterthwaite, "An approximate distribution of estimates of variance components", 1946.
    """
    from scipy.stats import t as student

    if outcomes.dim() != 2 or min(outcomes.shape) < 2:
        raise InputError(f"outcomes over seeds must be [S, n] with two of each or more, got {list(outcomes.shape)}.")
    values = outcomes.double()
    seeds, count = values.shape
    mean, rows, columns = float(values.mean()), values.mean(1), values.mean(0)
    square_seed = count * float(rows.var())
    square_input = seeds * float(columns.var())
    rest = values - rows[:, None] - columns + mean
    square_rest = float(rest.square().sum()) / ((seeds - 1) * (count - 1))
    between = max(0.0, (square_seed - square_rest) / count)
    inputs = max(0.0, (square_input - square_rest) / seeds)
    variance = between / seeds + inputs / count + square_rest / (seeds * count)
    parts = ((square_seed, seeds - 1), (square_input, count - 1), (square_rest, (seeds - 1) * (count - 1)))
    spread = sum((square / (seeds * count)) ** 2 / freedom for square, freedom in parts)
    if variance > 0:
        freedom = max(1.0, variance**2 / spread)
        half = float(student.ppf(0.975, freedom)) * math.sqrt(variance)
        low, high = mean - half, mean + half
    else:  # all answers are alike, and so many inputs say no more than that
        alike = Rate.of(round(mean * count), count)
        low, high = alike.low, alike.high
    alone = float(student.ppf(0.975, seeds - 1)) * float(rows.std()) / math.sqrt(seeds)
    return OverSeeds(
        seeds=seeds,
        samples=count,
        mean=mean,
        low=max(0.0, low),
        high=min(1.0, high),
        seeds_low=max(0.0, mean - alone),
        seeds_high=min(1.0, mean + alone),
        accuracies=rows.tolist(),
        between=between,
        inputs=inputs,
        within=square_rest,
    )


def interval_width(rate: float, samples: int) -> float:
    """Return the width of the 95 % Wilson interval where a share ``rate`` of so many inputs is right.

        width = 2 z sqrt(p (1 - p) / n + z² / 4n²) / (1 + z² / n)

    Raises:
        UsageError: a rate outside [0, 1], or no inputs.
    """
    require(0 <= rate <= 1, f"a rate lies in [0, 1], got {rate:g}.")
    require(samples >= 1, f"samples must be at least 1, got {samples}.")
    return 2 * Z * math.sqrt(rate * (1 - rate) / samples + Z**2 / (4 * samples**2)) / (1 + Z**2 / samples)


def samples_for_width(width: float, rate: float = 0.5) -> int:
    """Return the smallest number of inputs whose 95 % interval is at most so wide.

    Args:
        width: from the lower to the upper end, in (0, 1); 0.02 for plus or minus one point.
        rate: the accuracy expected; 0.5 is the worst case.

    Raises:
        UsageError: a width outside (0, 1), or a rate outside [0, 1].

    Example:
        >>> samples_for_width(0.02)
        9600
    """
    require(0 < width < 1, f"a width lies in (0, 1), got {width:g}.")
    enough = 1
    while interval_width(rate, enough) > width:
        enough *= 2
    short = enough // 2
    while enough - short > 1:
        middle = (enough + short) // 2
        if interval_width(rate, middle) > width:
            short = middle
        else:
            enough = middle
    return enough


def samples_for_difference(difference: float, disagreement: float, power: float = 0.8) -> int:
    """Return how many inputs it takes to tell two models apart at a two-sided level of 5 %.

        n = (z_0.975 sqrt(ψ) + z_power sqrt(ψ - δ²))² / δ²

    Args:
        difference: δ, of the two accuracies, in (0, 1).
        disagreement: ψ, the share of inputs that exactly one of them answers rightly, at least δ; pilot runs tell it. Models
            that err alike disagree little, and few inputs tell them apart.
        power: the chance to find the difference, in (0, 1).

    Raises:
        UsageError: a number out of range.

    Source: Connor, "Sample size for testing differences in proportions for the paired-sample design", 1987.

    Example:
        >>> samples_for_difference(0.02, 0.1)
        1960
    """
    from scipy.stats import norm

    require(0 < difference < 1, f"a difference to detect lies in (0, 1), got {difference:g}.")
    require(difference <= disagreement <= 1, f"the disagreement lies in [{difference:g}, 1], got {disagreement:g}.")
    require(0 < power < 1, f"power lies in (0, 1), got {power:g}.")
    reach = Z * math.sqrt(disagreement) + float(norm.ppf(power)) * math.sqrt(disagreement - difference**2)
    return math.ceil((reach / difference) ** 2)


def _require_outcomes(outcomes: Tensor) -> None:
    if outcomes.dim() != 1 or not len(outcomes):
        raise InputError(f"outcomes must have shape [N] with at least one input, got {list(outcomes.shape)}.")
