"""S-expressions, the parentheses of SMT-LIB, with the place of each part in the file."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from stalwart.core.errors import InputError

# What it skips is white space.
_TOKEN = re.compile(r"[()]|[^\s();\"|]+|;.*|[\"|]")
_DEEPEST = 100


class Expression(NamedTuple):
    """A symbol or number (``text``), or a list of expressions (``items``; then ``text`` is empty).

    ``line`` and ``column`` say where it starts, from 1.
    """

    text: str
    items: "tuple[Expression, ...]"
    line: int
    column: int

    def __str__(self) -> str:
        """Return the expression as it could stand in a file, shortened."""
        whole = self.text or f"({' '.join(map(str, self.items[:4]))}{' ...' if len(self.items) > 4 else ''})"
        return whole if len(whole) <= 60 else whole[:57] + "..."


def error(path: object, line: int, column: int, found: str, expected: str) -> InputError:
    """Return the error that names a place in a file; the caller raises it."""
    return InputError(f"{path}, line {line}, column {column}: found {found}, expected {expected}.")


def parse(text: str, path: object) -> list[Expression]:
    """Return the expressions of a text; comments run from ``;`` to the end of the line.

    Args:
        text: the file's text.
        path: its name, for messages.

    Raises:
        InputError: a parenthesis too many or too few, strings or quoted symbols, or nesting deeper than 100.
    """
    done: list[Expression] = []
    open_lists: list[tuple[int, int, list[Expression]]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        for match in _TOKEN.finditer(line):
            token, column = match[0], match.start() + 1
            if token == "(":
                open_lists.append((number, column, []))
                if len(open_lists) > _DEEPEST:
                    raise error(path, number, column, "'('", f"at most {_DEEPEST} parentheses inside one another")
                continue
            if token == ")":
                if not open_lists:
                    raise error(path, number, column, "')'", "'(' first: nothing is open here")
                start, left, items = open_lists.pop()
                part = Expression("", tuple(items), start, left)
            elif token[0] == ";":
                continue
            elif token[0] in '"|':
                raise error(path, number, column, token, "a name, a number or a parenthesis")
            else:
                part = Expression(token, (), number, column)
            (open_lists[-1][2] if open_lists else done).append(part)
    if open_lists:
        line_number, column, _ = open_lists[-1]
        raise error(
            path, line_number, column, "'(' that is never closed", "')' before the end; the file may be truncated"
        )
    return done


def listed(names: Sequence[str]) -> str:
    """Return ``a, b or c``."""
    return f"{', '.join(names[:-1])} or {names[-1]}"
