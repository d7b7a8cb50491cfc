"""The judge of counterexamples: exact, with no tolerance but on inputs and by request."""

import math

import pytest
import torch

from stalwart.core.errors import InputError, UsageError
from stalwart.interchange import Case, Conjunction, Property


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def ask(rows, limits, lower=(0.0, 0.0), upper=(1.0, 1.0)):
    unsafe = Conjunction(doubles(*rows), doubles(*limits))
    return Property(2, unsafe.C.shape[1], (Case(doubles(*lower), doubles(*upper), (unsafe,)),))


def test_all_rows_must_hold_and_the_limit_counts():
    judge = ask([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.5])
    y = doubles([0.0, 0.5], [-1.0, 0.5000001], [1e-300, 0.0], [-3.0, -3.0])
    assert judge.violated_by(doubles(*[[0.0, 1.0]] * 4), y).tolist() == [True, False, False, True]


def test_sums_are_judged_in_exact_arithmetic():
    judge = ask([[1.0, 1.0, 1.0]], [0.0])
    tiny = 2.0**-60
    # Rounded left to right, both sums are 0.
    y = doubles([1.0, tiny, -1.0], [1.0, -tiny, -1.0], [1e300, 1e-300, -1e300])
    assert judge.violated_by(torch.zeros(3, 1, 2), y).tolist() == [False, True, False]


def test_what_is_not_finite_is_no_counterexample():
    judge = ask([[1.0, 0.0]], [0.0])
    y = doubles([-math.inf, 0.0], [math.nan, 0.0], [-1.0, math.inf], [-1.0, 0.0])
    assert judge.violated_by(torch.zeros(4, 2), y).tolist() == [False, False, False, True]
    assert judge.violated_by(torch.tensor([[math.nan, 0.0]]), y[3:]).tolist() == [False]


def test_inputs_may_be_given_a_tolerance():
    judge = ask([[1.0]], [0.0])
    x = doubles([1.00009, 0.5], [1.0, math.nextafter(1.0, 2.0)], [1.0, -0.00011])
    y = torch.zeros(3, 1)
    assert judge.violated_by(x, y).tolist() == [False, False, False]
    assert judge.violated_by(x, y, tolerance=1e-4).tolist() == [True, True, False]


def test_any_case_and_any_unsafe_set_is_enough():
    below, above = Conjunction(doubles([1.0]), doubles(0.0)), Conjunction(doubles([-1.0]), doubles(-1.0))
    both = Case(doubles(0.0), doubles(1.0), (below, above))
    far = Case(doubles(5.0), doubles(6.0), (above,))
    judge = Property(1, 1, (both, far))
    x = doubles([0.5], [0.5], [0.5], [5.5], [5.5], [3.0])
    y = doubles([-1.0], [2.0], [0.5], [-1.0], [2.0], [2.0])
    assert judge.violated_by(x, y).tolist() == [True, True, False, False, True, False]


def test_sizes_and_tolerance_are_checked():
    judge = ask([[1.0]], [0.0])
    with pytest.raises(InputError, match="2 inputs and 1 outputs, but got 3 and 1"):
        judge.violated_by(torch.zeros(1, 3), torch.zeros(1, 1))
    with pytest.raises(InputError, match="belong together"):
        judge.violated_by(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(UsageError, match="tolerance"):
        judge.violated_by(torch.zeros(1, 2), torch.zeros(1, 1), tolerance=-1)
