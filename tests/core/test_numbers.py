"""The one parser of numbers."""

from fractions import Fraction

import hypothesis
import pytest
from hypothesis import strategies as st

from stalwart.core.errors import StalwartError, UsageError
from stalwart.core.numbers import parse_number, require


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("-1/4", -0.25),
        ("1e-3", 0.001),
        ("2e0/4e0", 0.5),
        (3, 3.0),
        (0.1, 0.1),
        ("0.1", 0.1),
    ],
)
def test_numbers_as_people_write_them(text, value):
    found = parse_number(text)
    assert type(found) is float
    assert found == value


@hypothesis.given(st.integers(-(10**6), 10**6), st.integers(1, 10**6))
def test_a_fraction_is_divided_out(numerator, denominator):
    assert parse_number(f"{numerator}/{denominator}") == float(Fraction(numerator, denominator))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "8/",
        "/255",
        "1/2/3",
        "1/0",
        "nan",
        "inf",
        "-inf",
        "inf/2",
        "1/inf/",
        "8\\255",
        "0,1",
        None,
        True,
        False,
        [0.1],
        {},
        float("nan"),
        float("inf"),
        10**400,
        "1e999",
        "1e308/1e-308",
    ],
)
def test_anything_else_is_refused_with_advice(text):
    with pytest.raises(UsageError, match="8/255"):
        parse_number(text)


def test_a_usage_error_is_a_value_error_with_exit_code_2():
    with pytest.raises(ValueError, match="steps") as caught:
        require(False, "steps must be positive.")
    assert isinstance(caught.value, StalwartError)
    assert caught.value.exit_code == 2
    require(True, "never")
