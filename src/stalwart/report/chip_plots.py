"""The report's figures of imperfect processors: chips under mismatch, drift over time, the loss around the weights."""

from collections.abc import Sequence
from typing import cast

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.ticker import FixedLocator, NullLocator

from stalwart.evaluation.hardware import ChipsRow, HardwareResult
from stalwart.evaluation.landscape import Landscape
from stalwart.report.plots import canvas, inline, line, look

_MUTED = "#6c6962"


def violins(name: str, style: int, found: HardwareResult) -> str:
    """Return how the accuracies of chips spread at each level of mismatch, a violin a level, or "" without such chips."""
    rows = [row for row in found.rows if row.block == "mismatch" and len(row.accuracies) > 1]
    if not rows:
        return ""
    figure, axes = canvas("standard deviation of mismatch", "accuracy of chips, %")
    colour = look(style)[0]
    places = [float(place) for place in range(len(rows))]
    shapes = axes.violinplot(
        [[100 * one for one in row.accuracies] for row in rows], places, widths=0.85, showextrema=False
    )
    for body in cast(list[PolyCollection], shapes["bodies"]):
        body.set(facecolor=colour, edgecolor="none", alpha=0.3)
    line(axes, style, places, [100 * row.mean for row in rows])
    axes.scatter(places, [100 * row.minimum for row in rows], marker="_", s=150, color=colour, linewidths=1.6)
    _baseline(axes, found)
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.set_xticklabels([f"{100 * row.level:g} %" for row in rows])
    axes.set_ylim(0, 101)
    return inline(name, figure, "Accuracy of chips against the level of mismatch")


def drift(name: str, style: int, found: HardwareResult) -> str:
    """Return accuracy against the time since programming, with compensation (solid) and without (dashed), or ""."""
    blocks = {"phase-change memory, compensated": "solid", "phase-change memory, raw": "dashed"}
    drawn = {block: [row for row in found.rows if row.block == block and not row.refused] for block in blocks}
    if not any(drawn.values()):
        return ""
    figure, axes = canvas("time since programming", "accuracy of chips, %")
    axes.set_xscale("log")
    for block, rows in drawn.items():
        times = [row.level for row in rows]
        low, high = _ends(rows)
        axes.fill_between(times, low, high, color=look(style)[0], alpha=0.13, linewidth=0)
        line(axes, style, times, [100 * row.mean for row in rows], blocks[block])
    _baseline(axes, found)
    times = sorted({row.level for rows in drawn.values() for row in rows})
    axes.xaxis.set_major_locator(FixedLocator(times))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([_time(seconds) for seconds in times])
    axes.set_ylim(0, 101)
    return inline(name, figure, "Accuracy of chips of phase-change memory against the time since programming")


def around(name: str, style: int, found: Landscape) -> str:
    """Return the loss along random directions through the weights, a line a direction."""
    figure, axes = canvas(f"distance, in deviations of {100 * found.level:g} %", "cross entropy")
    for losses in found.losses:
        line(axes, style, found.distances, losses)
    axes.set_ylim(bottom=0)
    return inline(name, figure, "Loss along random directions through the weights")


def _baseline(axes: Axes, found: HardwareResult) -> None:
    level = 100 * found.baseline
    axes.axhline(level, color=_MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    axes.annotate("the network itself", (0, level), xytext=(2, 3), xycoords=("axes fraction", "data"),
                  textcoords="offset points", ha="left", color=_MUTED, fontsize=9)  # fmt: skip


def _ends(rows: Sequence[ChipsRow]) -> tuple[list[float], list[float]]:
    return [100 * row.minimum for row in rows], [100 * max(row.accuracies, default=row.mean) for row in rows]


def _time(seconds: float) -> str:
    for unit, length in (("y", 365 * 24 * 3600.0), ("d", 24 * 3600.0), ("h", 3600.0)):
        if seconds >= length:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"
