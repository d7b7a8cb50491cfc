"""The report's figures of certificates: certified accuracy against eps, and the states of each layer's neurons."""

from collections.abc import Sequence

from matplotlib.ticker import FixedLocator, MaxNLocator

from stalwart.evaluation.results import Evaluation
from stalwart.report.certificates import Certificates, NeuronStatus
from stalwart.report.plots import (
    banded,
    canvas,
    inline,
    line,
    look,
    mark_eps,
    mark_radii,
)

STATE_TONES = {"dead": 6, "unstable": 1, "alive": 0, "right-unstable": 4, "right-dead": 7}
"""The page's colour, by its number, of each state of a neuron."""


def certified_curves(name: str, runs: Sequence[tuple[int, Evaluation, Certificates]]) -> str:
    """Return certified accuracy against eps for every run, with its 95 % band; it is dashed if the order check fired.

    Args:
        name: prefix of the ids inside, unique on the page.
        runs: (style number, evaluation, certificates); all under one threat model.
    """
    figure, axes = canvas("ε", "certified accuracy, %")
    known: set[float] = set()
    for style, _, certificates in runs:
        rates = {0.0: certificates.clean} | {point.eps: point.certified for point in certificates.curve}
        known |= set(rates)
        banded(axes, style, rates, "dashed" if certificates.order.fired else "solid")
    mains = [evaluation.eps for _, evaluation, _ in runs]
    mark_eps(axes, mains)
    mark_radii(axes, known, [0.0, *mains])
    axes.set_ylim(0, 101)
    return inline(name, figure, "Certified accuracy against the radius eps")


def gap(name: str, style: int, evaluation: Evaluation, certificates: Certificates) -> str:
    """Return attacked (solid) and certified (dashed) accuracy of the same inputs against eps, the gap between them shaded."""
    figure, axes = canvas("ε", "accuracy, %")
    below = {0.0: certificates.clean} | {point.eps: point.certified for point in certificates.curve}
    above = {0.0: certificates.clean} | {point.eps: point.attacked for point in certificates.curve}
    low, high = ([100 * rates[eps].value for eps in sorted(rates)] for rates in (below, above))
    axes.fill_between(sorted(above), low, high, color=look(style)[0], alpha=0.13, linewidth=0)
    for rates, dash in ((above, "solid"), (below, "dashed")):
        eps = sorted(rates)
        line(axes, style, eps, [100 * rates[e].value for e in eps], dash)
    mark_eps(axes, [evaluation.eps])
    mark_radii(axes, above, [0.0, evaluation.eps])
    axes.set_ylim(0, 101)
    return inline(name, figure, "Attacked and certified accuracy against the radius eps")


def neuron_bars(name: str, layers: Sequence[NeuronStatus]) -> str:
    """Return one bar a layer, first layer on top, that the shares of its neurons' states fill."""
    figure, axes = canvas("share of neurons, %", "layer")
    places = range(1, len(layers) + 1)
    left = [0.0] * len(layers)
    for state, tone in STATE_TONES.items():
        shares = [100 * layer.shares.get(state, 0.0) for layer in layers]
        axes.barh(places, shares, left=left, height=0.72, color=look(tone)[0], linewidth=0)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    axes.set_ylim(len(layers) + 0.6, 0.4)
    axes.set_xlim(0, 100)
    axes.grid(visible=False)
    axes.yaxis.set_major_locator(FixedLocator(list(places)) if len(layers) <= 12 else MaxNLocator(12, integer=True))
    return inline(name, figure, "Shares of dead, unstable and alive neurons in each layer")
