"""The report's figures of spiking networks: accuracy against time steps, spikes and membranes of one input."""

from matplotlib.ticker import MaxNLocator

from stalwart.report.plots import banded, canvas, inline, line
from stalwart.report.spikes import Spikes, Trace


def accuracy_over_steps(name: str, style: int, spikes: Spikes) -> str:
    """Return clean accuracy against the number of steps after which the output is read, with its 95 % band."""
    figure, axes = canvas("time steps", "clean accuracy, %")
    banded(axes, style, {float(point.steps): point.accuracy for point in spikes.over_steps}, "solid")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_ylim(0, 101)
    return inline(name, figure, "Clean accuracy against the number of time steps")


def raster(name: str, steps: int, trace: Trace) -> str:
    """Return when the most active neurons of a layer fired on one input, a row a neuron."""
    figure, axes = canvas("time step", "neuron")
    points = [(t, row) for row, times in enumerate(trace.spikes) for t in times]
    if points:
        when, rows = zip(*points, strict=True)
        axes.scatter(when, rows, s=9, marker="s", linewidths=0, color="#1d1c1a")
    axes.set_xlim(0.5, steps + 0.5)
    axes.set_ylim(len(trace.spikes), -1)
    axes.grid(visible=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(8, integer=True))
    return inline(name, figure, "Spikes of the most active neurons on one input")


def membranes(name: str, steps: int, trace: Trace) -> str:
    """Return the membranes of a few neurons on one input, and their threshold."""
    figure, axes = canvas("time step", "membrane")
    for style, values in enumerate(trace.membranes):
        line(axes, style, [float(t) for t in range(1, steps + 1)], values)
    axes.axhline(trace.threshold, color="#6c6962", linewidth=0.9, linestyle="dashed", zorder=0)
    axes.annotate("threshold", (0, trace.threshold), xytext=(2, 3), xycoords=("axes fraction", "data"),
                  textcoords="offset points", ha="left", color="#6c6962", fontsize=9)  # fmt: skip
    axes.set_xlim(0.8, steps + 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return inline(name, figure, "Membranes of a few neurons on one input")
