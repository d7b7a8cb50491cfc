"""One parser for every number a person writes: ``0.1``, ``"8/255"``, ``"1e-3"``."""

import math
import re
from typing import Annotated, Any

import pydantic

from stalwart.core.errors import UsageError

_FRACTION = re.compile(r"^\s*([^/\s]+)\s*/\s*([^/\s]+)\s*$")


def parse_number(text: Any) -> float:
    """Return the finite float that ``text`` stands for; fractions such as ``"8/255"`` are divided out.

    Raises:
        UsageError: the text is not a finite number.
    """
    try:
        if isinstance(text, bool):
            raise ValueError
        match = _FRACTION.match(text) if isinstance(text, str) else None
        value = float(match[1]) / float(match[2]) if match else float(text)
    except (TypeError, ValueError, ArithmeticError):
        raise UsageError(f"{text!r} is not a number; write it as 0.1, 1e-3 or '8/255'.") from None
    if not math.isfinite(value):
        raise UsageError(f"{text!r} is not a finite number; write it as 0.1, 1e-3 or '8/255'.")
    return value


Number = Annotated[float, pydantic.BeforeValidator(parse_number)]
"""The type of a float field that may be written as a fraction."""


def require(condition: bool, what: str) -> None:
    """Raise :class:`UsageError` with the sentence ``what`` unless the condition holds."""
    if not condition:
        raise UsageError(what)
