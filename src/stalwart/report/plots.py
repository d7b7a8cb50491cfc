"""The report's figures as inline SVG: accuracy against eps, training curves, accuracy against noise draws.

Text stays text and takes the page's font; colours are CSS variables of the page with the light palette as fallback, so
that one figure serves light and dark. No figure holds text from outside: run names stand in the page's legend.
"""

import io
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Affine2D

from stalwart.evaluation.results import Evaluation, Rate, SweepPoint
from stalwart.report.wording import radius

# Dark and light hues alternate, so that neighbours also differ in grey and to colour-blind eyes (after Okabe and Ito).
_COLOURS = ("#0b5fa5", "#cc5a12", "#00866a", "#a8487f", "#b08500", "#3b9ad6", "#62626e", "#7a4420")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_INK, _MUTED, _GRID = "#1d1c1a", "#6c6962", "#e0dcd4"
_VARIABLES = {_INK: "ink", _MUTED: "muted", _GRID: "rule"} | {colour: f"s{i}" for i, colour in enumerate(_COLOURS)}
_WIDTH, _HEIGHT = 420.0, 265.0

Entries = Sequence[Mapping[str, Any]]


def swatch(style: int) -> str:
    """Return the legend sign of run number ``style``: its line and its marker, as inline SVG without ids."""
    colour, marker = look(style)
    shape = MarkerStyle(marker)
    path = shape.get_path().transformed(shape.get_transform() + Affine2D().scale(9.0, -9.0).translate(13.0, 7.0))
    points = " ".join(f"{x:.2f},{y:.2f}" for x, y in np.asarray(path.to_polygons()[0]))
    paint = f"var(--{_VARIABLES[colour]}, {colour})"
    return (
        f'<svg class="swatch" viewBox="0 0 26 14" width="26" height="14" aria-hidden="true"><path d="M0 7H26" '
        f'style="stroke: {paint}; stroke-width: 2"/><polygon points="{points}" style="fill: {paint}"/></svg>'
    )


def accuracy_curves(name: str, runs: Sequence[tuple[int, Evaluation]]) -> str:
    """Return worst-case accuracy against eps for every run, with its 95 % band; it is dashed if a masking check fired.

    Args:
        name: prefix of the ids inside, unique on the page.
        runs: (style number, evaluation); all under one threat model. The accuracy at 0 is the clean one.
    """
    figure, axes = canvas("ε", "worst-case accuracy, %")
    known = {0.0, *(evaluation.eps for _, evaluation in runs)}
    for style, evaluation in runs:
        rates = attacked_rates(evaluation)
        known |= set(rates)
        doubtful = any(flag.fired for flag in evaluation.flags)
        banded(axes, style, rates, "dashed" if doubtful else "solid")
    mark_eps(axes, [evaluation.eps for _, evaluation in runs])
    classes = {len(evaluation.classes) for _, evaluation in runs}
    if len(classes) == 1 and 0 not in classes:
        chance = 100 / classes.pop()
        axes.axhline(chance, color=_MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
        axes.annotate("chance", (0, chance), xytext=(2, 3), xycoords=("axes fraction", "data"),
                      textcoords="offset points", ha="left", color=_MUTED, fontsize=9)  # fmt: skip
    mark_radii(axes, known, [0.0, *(evaluation.eps for _, evaluation in runs)])
    axes.set_ylim(0, 101)
    return inline(name, figure, "Worst-case accuracy against the radius eps")


def loss_curves(name: str, runs: Sequence[tuple[int, Entries]]) -> str:
    """Return training loss against epoch for every run, or an empty string if no run recorded it."""
    figure, axes = canvas("epoch", "training loss")
    drawn = [_history(axes, style, entries, "train_loss", 1.0, "solid") for style, entries in runs]
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    return inline(name, figure, "Training loss against the epoch") if any(drawn) else ""


def learning_curves(name: str, runs: Sequence[tuple[int, Entries]], with_training: bool = False) -> str:
    """Return validation accuracy (solid) and robust validation accuracy (dashed) against epoch, or an empty string.

    Args:
        name: prefix of the ids inside, unique on the page.
        runs: (style number, entries of ``metrics.jsonl``).
        with_training: also draw the accuracy on training batches (dotted).
    """
    figure, axes = canvas("epoch", "accuracy, %")
    lines = [("validation_accuracy", "solid"), ("validation_robust_accuracy", "dashed")]
    if with_training:
        lines.append(("train_accuracy", "dotted"))
    drawn = [_history(axes, style, entries, key, 100.0, dash) for style, entries in runs for key, dash in lines]
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_ylim(0, 101)
    return inline(name, figure, "Accuracy against the epoch") if any(drawn) else ""


def draw_sweep(name: str, style: int, sweep: Sequence[SweepPoint]) -> str:
    """Return robust accuracy against the number of noise draws that the attack averages a step, on a log2 axis."""
    figure, axes = canvas("noise draws m a step", "robust accuracy, %")
    points = sorted(sweep, key=lambda point: point.draws)
    draws = [float(point.draws) for point in points]
    low, high = [100 * point.robust.low for point in points], [100 * point.robust.high for point in points]
    axes.set_xscale("log", base=2)
    axes.fill_between(draws, low, high, color=look(style)[0], alpha=0.13, linewidth=0)
    line(axes, style, draws, [100 * point.robust.value for point in points])
    axes.xaxis.set_major_locator(FixedLocator(draws))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(point.draws) for point in points])
    axes.set_ylim(0, 101)
    return inline(name, figure, "Robust accuracy against the noise draws averaged a step")


def attacked_rates(evaluation: Evaluation) -> dict[float, Rate]:
    """Return worst-case accuracy by radius; at 0 it is the clean one."""
    rates = {0.0: evaluation.clean} | {point.eps: point.robust for point in evaluation.curve}
    rates.setdefault(evaluation.eps, evaluation.worst)
    return rates


def banded(axes: Axes, style: int, rates: Mapping[float, Rate], dash: str = "solid") -> None:
    """Draw rates by radius as one line with its 95 % band."""
    eps = sorted(rates)
    low, high = [100 * rates[e].low for e in eps], [100 * rates[e].high for e in eps]
    axes.fill_between(eps, low, high, color=look(style)[0], alpha=0.13, linewidth=0)
    line(axes, style, eps, [100 * rates[e].value for e in eps], dash)


def mark_radii(axes: Axes, known: Collection[float], important: Sequence[float]) -> None:
    """Label the horizontal axis with the known radii, as many as fit."""
    letters = max(len(radius(eps)) for eps in known)
    ticks = _thinned(sorted(known), important, gap=(0.02 + 0.0185 * letters) * (max(known) or 1.0))
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xticklabels([radius(tick) for tick in ticks])


def mark_eps(axes: Axes, radii: Sequence[float]) -> None:
    """Draw an upright line at each main radius."""
    for eps in sorted(set(radii)):
        axes.axvline(eps, color=_MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)


def look(style: int) -> tuple[str, str]:
    """Return the colour and the marker of run number ``style``."""
    colour = style % len(_COLOURS)
    return _COLOURS[colour], _MARKERS[(style + style // len(_COLOURS)) % len(_MARKERS)]


def canvas(below: str, above: str) -> tuple[Figure, Axes]:
    """Return an empty figure with a label under its horizontal axis and a headline."""
    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72))
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0.085, 0.155, 0.885, 0.735))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, labelsize=10.5, length=0, pad=5)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(below, color=_MUTED, fontsize=10.5, loc="right", labelpad=3)
    axes.set_title(above, color=_INK, fontsize=11, loc="left", x=-0.09, pad=9)
    return figure, axes


def line(axes: Axes, style: int, x: Sequence[float], y: Sequence[float], dash: str = "solid") -> None:
    """Draw one line in the look of a run."""
    colour, marker = look(style)
    axes.plot(x, y, color=colour, marker=marker, markersize=5.5, markeredgewidth=0, linewidth=1.8, linestyle=dash,
              markevery=max(1, len(x) // 10), clip_on=False)  # fmt: skip


def _history(axes: Axes, style: int, entries: Entries, key: str, scale: float, dash: str) -> bool:
    found = [(entry.get("epoch", i + 1), entry.get(key)) for i, entry in enumerate(entries)]
    points = [(float(x), scale * float(y)) for x, y in found if isinstance(y, (int, float))]
    if points:
        line(axes, style, [x for x, _ in points], [y for _, y in points], dash)
    return bool(points)


def _thinned(values: Sequence[float], important: Sequence[float], gap: float) -> list[float]:
    """Keep the important values, and of the others those that leave ``gap`` for every label."""
    kept = sorted(set(important))
    for value in values:
        if all(abs(value - other) >= gap for other in kept):
            kept.append(value)
    return sorted(kept)


def inline(name: str, figure: Figure, label: str) -> str:
    """Return a figure as SVG for the page, its ids prefixed by ``name``."""
    buffer = io.StringIO()
    silent = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=silent)
    text = buffer.getvalue()
    opening = f'<svg class="plot" role="img" aria-label="{label}" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}"><defs>'
    # matplotlib's own style sheet would apply to the whole page; the page's has the same rule for its plots alone.
    text = re.sub(r"^.*?<svg\b.*?</style>\s*</defs>", opening + "</defs>", text, count=1, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: (?:[a-z]+ )*([\d.]+px)[^;\"]*", r"font-size: \1", text)  # matplotlib before 3.9
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable}, {colour})")
    return text.strip()
