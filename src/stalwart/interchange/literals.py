"""Linear terms and their comparisons, in exact fractions: the atoms of a VNN-LIB formula."""

import math
from fractions import Fraction
from typing import NamedTuple

Variable = tuple[str, int]
"""("X", i) or ("Y", j)."""


class Linear(NamedTuple):
    """Σ coefficient · variable + constant; no coefficient is 0."""

    terms: dict[Variable, Fraction]
    constant: Fraction


class Bound(NamedTuple):
    """X_input <= value if ``upper``, else X_input >= value; ``line`` is where the file says so."""

    input: int
    upper: bool
    value: Fraction
    line: int

    @property
    def key(self) -> tuple[int, bool]:
        """What the bound bounds."""
        return self.input, self.upper

    def tighter_than(self, other: "Bound") -> bool:
        """Compare two bounds of the same input and side."""
        return self.value < other.value if self.upper else self.value > other.value


class Row(NamedTuple):
    """Σ coefficient · Y_j <= limit, or < limit if ``strict``."""

    coefficients: tuple[tuple[int, Fraction], ...]
    limit: Fraction
    strict: bool


class Truth(NamedTuple):
    """A comparison of numbers with one another."""

    value: bool


Literal = Bound | Row | Truth
Conjunct = tuple[Literal, ...]
"""Literals that must all hold; a formula is a list of conjuncts of which one must."""


def scale(term: Linear, factor: Fraction) -> Linear:
    """Return factor · term."""
    return Linear({name: factor * value for name, value in term.terms.items() if factor}, factor * term.constant)


def add(a: Linear, b: Linear) -> Linear:
    """Return a + b."""
    terms = dict(a.terms)
    for name, value in b.terms.items():
        terms[name] = terms[name] + value if name in terms else value
    return Linear({name: value for name, value in terms.items() if value}, a.constant + b.constant)


def negated(term: Linear) -> Linear:
    """Return -term."""
    return Linear({name: -value for name, value in term.terms.items()}, -term.constant)


def float_below(value: Fraction, strict: bool = False) -> float:
    """Return the largest float64 number <= ``value``, or < ``value`` if ``strict``.

    Raises:
        OverflowError: the value is beyond float64.
    """
    near = float(value)  # rounds to nearest
    over = Fraction(near) >= value if strict else Fraction(near) > value
    return math.nextafter(near, -math.inf) if over else near


def float_above(value: Fraction) -> float:
    """Return the smallest float64 number >= ``value``.

    Raises:
        OverflowError: the value is beyond float64.
    """
    return -float_below(-value)
