"""How the report writes numbers: percentages with one decimal, radii as people name them."""

import math

from stalwart.evaluation.results import Rate
from stalwart.evaluation.statistics import Mean

BOUNDS = {
    "ibp": "IBP",
    "crown-ibp": "CROWN-IBP",
    "lbp": "LBP",
    "crown-lbp": "CROWN-LBP",
    "crown": "CROWN",
    "alpha-crown": "α-CROWN",
    "branch-and-bound": "complete",
}
"""How the literature writes the methods of certification, in the order of the table's columns."""


def bound(method: str) -> str:
    """Write the name of a method of certification as the literature does."""
    return BOUNDS.get(method, method)


def percent(share: float) -> str:
    """Write a share in [0, 1] as a percentage with one decimal, without the sign: ``0.6144`` is ``61.4``."""
    return f"{100 * share:.1f}"


def interval(rate: Rate | Mean) -> str:
    """Write the 95 % interval of a rate or mean in percent: ``58.1–64.2``."""
    return f"{percent(rate.low)}–{percent(rate.high)}"


def points(difference: float) -> str:
    """Write a difference of two shares in points with its sign: ``0.032`` is ``+3.2``."""
    return f"{100 * difference:+.1f}"


def chance(p: float) -> str:
    """Write a p: ``0.012``, ``< 0.001``."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def radius(eps: float) -> str:
    """Write a radius as ``0.1`` where three digits say it exactly, else as ``8/255``, else with four digits."""
    short = f"{eps:.3g}"
    if math.isclose(float(short), eps, rel_tol=1e-9):
        return short
    halves = eps * 510
    if round(halves) > 0 and math.isclose(halves, round(halves), rel_tol=1e-5):
        return f"{round(halves) / 2:g}/255"
    return f"{eps:.4g}"


def duration(seconds: float) -> str:
    """Write a time: ``0.4 s``, ``38 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def level(value: float, unit: str) -> str:
    """Write a level of a device in its unit: ``5 %``, ``25 s``, ``30 days``, ``4 bits``, ``bit 7``."""
    if unit == "share":
        return f"{100 * value:.4g} %"
    if unit == "seconds":
        for name, length in (("year", 365 * 24 * 3600), ("day", 24 * 3600), ("h", 3600)):
            if value >= length:
                return f"{value / length:g} {name}{'s' if name != 'h' and value > length else ''}"
        return f"{value:g} s"
    return f"{value:g} bits" if unit == "bits" else f"bit {value:g}"


def quantity(value: object) -> str:
    """Write any figure of a metrics table: integers whole, floats with four digits, what is missing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.4g}"
