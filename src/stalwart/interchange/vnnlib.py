"""Reading VNN-LIB: the subset of SMT-LIB in which VNN-COMP states properties of networks."""

import functools
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from stalwart.core.errors import InputError
from stalwart.interchange.files import read_text
from stalwart.interchange.literals import Bound, Conjunct, Linear, Literal, Row, Truth, Variable, add, negated, scale
from stalwart.interchange.normal_form import cases_of, product
from stalwart.interchange.property import Property
from stalwart.interchange.s_expressions import Expression, error, listed, parse

_MOST_BYTES = 2**28
_NUMBER = re.compile(r"[+-]?(\d{1,1000}\.?\d{0,1000}|\.\d{1,1000})([eE][+-]?\d{1,4})?")
_NAME = re.compile(r"([XY])_(0|[1-9]\d{0,8})")
_RELATIONS = ("<=", ">=", "<", ">", "=")
_CONNECTIVES = ("and", "or")
_OPERATIONS = ("+", "-", "*")


def read_vnnlib(path: Path | str) -> Property:
    """Read a ``.vnnlib`` (or ``.vnnlib.gz``) file.

    Understood are ``declare-const NAME Real`` and ``declare-fun NAME () Real`` for X_0 ... and Y_0 ..., and ``assert`` of
    ``and``, ``or`` and ``<= >= < > =`` between linear terms in ``+ - *`` of numbers and variables. The formula describes
    a counterexample. It is brought into the form OR over boxes of inputs, OR over conjunctions of output rows.

    Rounding, so that a proof on the result is a proof on the file:

    - Numbers are read exactly, as fractions. Bounds on inputs become the tightest float64 box that contains the exact
      one: a bound moves outward, by less than one unit in the last place, only if float64 cannot hold it.
    - Rows keep exact coefficients (multiplied by a common factor where that is needed). A limit becomes the largest float64
      number d that the file's constraint allows: that is the limit itself if float64 holds it. A float64 number v is
      at most d exactly if it meets the constraint, so both a proven float64 lower bound above d and a
      counterexample with c·y <= d are right. ``c·y < limit`` takes the largest float64 number below the limit.
    - A strict bound on an input is read as if it were not strict: the box is closed.

    Raises:
        FileError: missing, truncated, larger than 256 MiB, or not text.
        InputError: anything else than the above, with line and column; an input without a lower or upper bound, an empty box,
            a constraint between inputs or between inputs and outputs, no constraint on the outputs, a formula that no
            numbers can meet, or one of more than two million literals in disjunctive normal form.
    """
    return _Reader(path).read(parse(read_text(path, "VNN-LIB file", _MOST_BYTES), path))


class _Reader:
    """Reads one file: declarations first come into ``declared``, each assertion becomes a list of conjuncts."""

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.declared: set[Variable] = set()

    def read(self, commands: Sequence[Expression]) -> Property:
        """Return the property that the commands state."""
        asserted: list[list[Conjunct]] = []
        for command in commands:
            if not command.items:
                raise self._error(command, f"'{command}'", "(declare-const ...), (declare-fun ...) or (assert ...)")
            head, *rest = command.items
            if head.text in ("declare-const", "declare-fun"):
                self._declare(command, rest)
            elif head.text == "assert" and len(rest) == 1:
                asserted.extend(self._formula(part) for part in _parts(rest[0]))
            elif head.text == "assert":
                raise self._error(command, f"assert of {len(rest)} formulas", "exactly one formula")
            else:
                raise self._error(command, f"'{command}'", "declare-const, declare-fun or assert")
        inputs, outputs = (self._count(kind) for kind in "XY")
        return Property(inputs, outputs, cases_of(asserted, inputs, outputs, self.path))

    def _error(self, at: Expression, found: str, expected: str) -> InputError:
        return error(self.path, at.line, at.column, found, expected)

    def _declare(self, command: Expression, rest: Sequence[Expression]) -> None:
        function = command.items[0].text == "declare-fun"
        if len(rest) != 2 + function or rest[-1].text != "Real" or (function and (rest[1].text or rest[1].items)):
            raise self._error(command, f"'{command}'", "(declare-const NAME Real) or (declare-fun NAME () Real)")
        name = self._variable(rest[0])
        if name in self.declared:
            raise self._error(rest[0], f"{rest[0].text} for the second time", "each variable declared once")
        self.declared.add(name)

    def _variable(self, at: Expression) -> Variable:
        match = _NAME.fullmatch(at.text)
        if match is None:
            raise self._error(at, f"'{at}'", "X_0, X_1, ... for inputs or Y_0, Y_1, ... for outputs")
        return match[1], int(match[2])

    def _count(self, kind: str) -> int:
        numbers = {index for name, index in self.declared if name == kind}
        what = "inputs" if kind == "X" else "outputs"
        if not numbers:
            raise InputError(f"{self.path} declares no {what}; declare {kind}_0, {kind}_1 and so on.")
        missing = next((at for at in range(len(numbers)) if at not in numbers), None)
        if missing is not None:
            raise InputError(f"{self.path} declares {len(numbers)} {what} but not {kind}_{missing}; leave no gaps.")
        return len(numbers)

    def _formula(self, at: Expression) -> list[Conjunct]:
        """Return a formula as an OR of conjuncts."""
        if not at.items:
            raise self._error(at, f"'{at}'", f"a formula in {listed(_RELATIONS + _CONNECTIVES)}")
        head, *rest = at.items
        if head.text in _RELATIONS:
            if len(rest) != 2:
                raise self._error(at, f"'{head.text}' of {len(rest)} terms", "two terms")
            return [self._relation(head, self._term(rest[0]), self._term(rest[1]))]
        if head.text not in _CONNECTIVES:
            raise self._error(head, f"'{head}'", listed(_RELATIONS + _CONNECTIVES))
        if not rest:
            raise self._error(at, f"'{head.text}' of nothing", "at least one formula")
        parts = [self._formula(part) for part in rest]
        if head.text == "or":
            return list(itertools.chain.from_iterable(parts))
        return product(parts, f"{self.path}, line {at.line}")

    def _relation(self, head: Expression, left: Linear, right: Linear) -> Conjunct:
        """Return ``left - right`` compared with 0 as literals."""
        if head.text in (">=", ">"):
            left, right = right, left
        strict = head.text in ("<", ">")
        first = self._at_most_zero(add(left, negated(right)), strict, head)
        if head.text != "=":
            return (first,)
        return first, self._at_most_zero(add(right, negated(left)), False, head)

    def _at_most_zero(self, term: Linear, strict: bool, head: Expression) -> Literal:
        kinds = [name for name, _ in term.terms]
        if not kinds:
            return Truth(term.constant < 0 or (term.constant == 0 and not strict))
        if kinds == ["X"]:
            [((_, index), factor)] = term.terms.items()
            limit = -term.constant if factor == 1 else -term.constant / factor
            return Bound(index, factor > 0, limit, head.line)
        if "X" in kinds:
            names = " and ".join(f"{name}_{index}" for name, index in list(term.terms)[:2])
            raise self._error(
                head, f"a constraint between {names}", "bounds on single inputs, or constraints on outputs only"
            )
        rows = tuple(sorted((index, factor) for (_, index), factor in term.terms.items()))
        return Row(rows, -term.constant, strict)

    def _term(self, at: Expression) -> Linear:
        """Return a linear term."""
        if at.text:
            if _NUMBER.fullmatch(at.text):
                return Linear({}, Fraction(at.text))
            if _NAME.fullmatch(at.text) is None:
                raise self._error(at, f"'{at}'", "a number, a declared X_i or Y_j, or a term in + - *")
            variable = self._variable(at)
            if variable not in self.declared:
                raise self._error(at, f"{at.text}, which is not declared", "a declared X_i or Y_j")
            return Linear({variable: Fraction(1)}, Fraction(0))
        head, *rest = at.items or (at,)
        if head.text not in _OPERATIONS or not rest:
            raise self._error(head, f"'{head}'", f"{listed(_OPERATIONS)} and its terms")
        parts = [self._term(part) for part in rest]
        if head.text == "*":
            return self._multiply(at, parts)
        if head.text == "-":
            parts = [negated(parts[0])] if len(parts) == 1 else [parts[0], *map(negated, parts[1:])]
        return functools.reduce(add, parts)

    def _multiply(self, at: Expression, parts: Sequence[Linear]) -> Linear:
        linear = [part for part in parts if part.terms]
        if len(linear) > 1:
            raise self._error(at, "a product of variables", "at most one factor that is not a number")
        factor = math.prod((part.constant for part in parts if not part.terms), start=Fraction(1))
        return scale(linear[0], factor) if linear else Linear({}, factor)


def _parts(formula: Expression) -> Iterator[Expression]:
    """Yield the formulas that one assertion joins by ``and``."""
    if len(formula.items) > 1 and formula.items[0].text == "and":
        for part in formula.items[1:]:
            yield from _parts(part)
    else:
        yield formula
