"""From a VNN-LIB formula to boxes of inputs with unsafe sets of outputs."""

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from stalwart.core.errors import InputError
from stalwart.interchange.literals import Bound, Conjunct, Row, Truth, float_above, float_below
from stalwart.interchange.property import Case, Conjunction

MOST_LITERALS = 2_000_000

Box = dict[tuple[int, bool], Bound]


def product(parts: Sequence[list[Conjunct]], where: str) -> list[Conjunct]:
    """Return the AND of several formulas, multiplied out.

    Raises:
        InputError: the result would hold more than :data:`MOST_LITERALS` literals; the message starts with ``where``.
    """
    count = math.prod(len(part) for part in parts)
    longest = sum(max(map(len, part), default=0) for part in parts)
    if count * max(longest, 1) > MOST_LITERALS:
        raise InputError(
            f"{where}: multiplied out, the formula has {count} alternatives of up to {longest} constraints, more than "
            f"{MOST_LITERALS} in all. Split the property into several files."
        )
    return [tuple(itertools.chain.from_iterable(choice)) for choice in itertools.product(*parts)]


def cases_of(asserted: Sequence[list[Conjunct]], inputs: int, outputs: int, path: object) -> tuple[Case, ...]:
    """Return the cases that all assertions together describe; unsafe sets with the same box share a case.

    Args:
        asserted: one formula an assertion.
        inputs: how many X there are.
        outputs: how many Y there are.
        path: the file, for messages.

    Raises:
        InputError: an input without bounds, an empty box, no constraint on outputs, nothing left, or a number that float64
            cannot hold.
    """
    common = tuple(itertools.chain.from_iterable(part[0] for part in asserted if len(part) == 1))
    choices = [part for part in asserted if len(part) != 1]
    bounds, rows, possible = _sorted_out(common)
    found: dict[tuple[float, ...], list[Conjunction]] = {}
    try:
        shared = _tighten({}, bounds)
        # An empty box that was written down is a mistake; one from two assertions that exclude each other is not.
        _refuse_empty(shared, bounds, path)
        for written, _, _ in map(_sorted_out, itertools.chain.from_iterable(choices)):
            _refuse_empty(_tighten(shared, written), written, path)
        shared_corners = functools.cache(lambda: _corners(shared, inputs, path))
        for conjunct in product(choices, f"{path}, all assertions together"):
            own, further, possible_too = _sorted_out(conjunct)
            box = _tighten(shared, own)
            if possible and possible_too and _clash(box, own) is None:
                corners = _corners(box, inputs, path) if own else shared_corners()
                found.setdefault(corners, []).append(_conjunction([*rows, *further], outputs, path))
    except OverflowError as problem:
        raise InputError(f"{path} holds a number that float64 cannot: {problem}. Write smaller numbers.") from problem
    if not found:
        raise InputError(f"{path} cannot be met by any numbers; its assertions exclude one another. Correct them.")
    if all(len(unsafe.d) == 0 for case in found.values() for unsafe in case):
        raise InputError(f"{path} does not constrain the outputs, so that any input would do; it may be truncated.")
    return tuple(
        Case(_vector(corners[:inputs]), _vector(corners[inputs:]), tuple(unsafe)) for corners, unsafe in found.items()
    )


def _sorted_out(conjunct: Conjunct) -> tuple[list[Bound], list[Row], bool]:
    """Return the bounds, the rows, and whether the comparisons of mere numbers hold."""
    bounds = [literal for literal in conjunct if isinstance(literal, Bound)]
    rows = [literal for literal in conjunct if isinstance(literal, Row)]
    return bounds, rows, Truth(False) not in conjunct


def _tighten(box: Box, bounds: Sequence[Bound]) -> Box:
    """Return the box with further bounds."""
    if not bounds:
        return box
    found = dict(box)
    for bound in bounds:
        known = found.get(bound.key)
        if known is None or bound.tighter_than(known):
            found[bound.key] = bound
    return found


def _clash(box: Box, touched: Iterable[Bound]) -> tuple[Bound, Bound] | None:
    """Return the bounds of one of the touched inputs that exclude each other, if there are any."""
    for index in {bound.input for bound in touched}:
        lower, upper = box.get((index, False)), box.get((index, True))
        if lower is not None and upper is not None and lower.value > upper.value:
            return lower, upper
    return None


def _refuse_empty(box: Box, touched: Iterable[Bound], path: object) -> None:
    clash = _clash(box, touched)
    if clash is not None:
        lower, upper = clash
        raise InputError(
            f"{path}: the box is empty: X_{lower.input} >= {float(lower.value)!r} (line {lower.line}) and "
            f"X_{upper.input} <= {float(upper.value)!r} (line {upper.line}). Correct the bounds."
        )


def _corners(box: Box, inputs: int, path: object) -> tuple[float, ...]:
    """Return the lower corner and the upper corner in one row, rounded outward."""
    for index, is_upper in itertools.product(range(inputs), (False, True)):
        if (index, is_upper) not in box:
            side = "upper" if is_upper else "lower"
            raise InputError(f"{path}: X_{index} has no {side} bound in one of the cases; give each input both bounds.")
    lower = [float_below(box[index, False].value) for index in range(inputs)]
    return (*lower, *(float_above(box[index, True].value) for index in range(inputs)))


def _conjunction(rows: Sequence[Row], outputs: int, path: object) -> Conjunction:
    """Return the rows as a matrix."""
    matrix = torch.zeros(len(rows), outputs, dtype=torch.float64)
    limits = []
    for at, row in enumerate(rows):
        factor = _common_factor(row, path)
        for index, coefficient in row.coefficients:
            matrix[at, index] = float(factor * coefficient)
        limits.append(float_below(factor * row.limit, row.strict))
    return Conjunction(matrix, _vector(limits))


def _common_factor(row: Row, path: object) -> Fraction:
    """Return the smallest whole number that makes all coefficients exact in float64."""
    values = [coefficient for _, coefficient in row.coefficients]
    if all(Fraction(float(value)) == value for value in values):
        return Fraction(1)
    factor = Fraction(math.lcm(*(value.denominator for value in values)))
    if any(Fraction(float(factor * value)) != factor * value for value in values):
        raise InputError(f"{path} holds coefficients of outputs with more digits than float64 can keep. Shorten them.")
    return factor


def _vector(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
