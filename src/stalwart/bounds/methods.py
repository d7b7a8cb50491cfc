"""The bounding methods by name, and the calls that use them."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stalwart.bounds import rounding
from stalwart.bounds.alpha import Ascent, optimise, refine
from stalwart.bounds.backward import BackwardWalk, entries, lower_bound
from stalwart.bounds.constants import check_constants
from stalwart.bounds.interval import Interval
from stalwart.bounds.lines import check_strategy
from stalwart.bounds.propagation import Propagation, Refine
from stalwart.bounds.region import Region
from stalwart.bounds.rules.spread import moved
from stalwart.core.checks import check_images, check_labels
from stalwart.core.errors import InputError, UsageError
from stalwart.core.registry import suggest
from stalwart.graph import Graph, Node, trace
from stalwart.sets import RelativeBox, ThreatSet
from stalwart.stochastic import is_random

Rigor = Literal["float64", "rigorous"]
Weights = RelativeBox | Mapping[str, tuple[Tensor, Tensor]]
"""What parameters range over: a set around them, or a lower and an upper end by parameter name."""


@dataclass(frozen=True, eq=False)
class Bounds:
    """Sound bounds of each output, or of each row of a specification: ``lower`` and ``upper`` [B, K]."""

    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class Method:
    """How intermediate intervals are found and how the output is bounded.

    Attributes:
        summary: one line for listings.
        inner: "interval", "forms" (forward linear bounds), "walk" (backward) or "ascent", a walk whose slopes are optimised.
        outer: the same for the output; a walk of "interval" and "forms" passes the last linear layers only.
        depth: how many nonlinear operators inner walks pass before forms stand in for the rest; None for all.
    """

    summary: str
    inner: Literal["interval", "forms", "walk", "ascent"]
    outer: Literal["interval", "forms", "walk", "ascent"]
    depth: int | None = None


METHODS: dict[str, Method] = {
    "ibp": Method("intervals, layer by layer (Gowal et al., 2018)", "interval", "interval"),
    "crown-ibp": Method("a backward walk over intervals (Zhang et al., 2020)", "interval", "walk"),
    "lbp": Method("linear forms, layer by layer (Lyu et al., 2021)", "forms", "forms"),
    "crown-lbp": Method("a backward walk over linear forms (Lyu et al., 2021)", "forms", "walk"),
    "crown": Method("a backward walk for every layer (Zhang et al., 2018)", "walk", "walk"),
    "alpha-crown": Method(
        "crown, with slopes optimised for every row of every walk (Xu et al., 2021)", "ascent", "ascent"
    ),
    **{
        f"relaxed-crown-{depth}": Method(
            f"walks over {depth} layers, then linear forms (Lyu et al., 2021)", "walk", "walk", depth
        )
        for depth in (1, 2, 3, 4)
    },
}


def find_method(name: str) -> Method:
    """Return the method of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in METHODS:
        raise UsageError(f"unknown bounding method '{name}'.{suggest(name, METHODS)} Known: {', '.join(METHODS)}.")
    return METHODS[name]


def bound(
    model: nn.Module,
    x: Tensor,
    within: ThreatSet | RelativeBox | None = None,
    method: str = "ibp",
    *,
    weights: Weights | None = None,
    rows: Tensor | None = None,
    strategy: str = "adaptive",
    rigor: Rigor | None = None,
) -> Bounds:
    """Bound every output of ``model`` over all inputs in the threat set around x.

    Args:
        model: maps [B, ...] to [B, K]; bounded in evaluation mode.
        x: inputs [B, ...] in data units.
        within: the threat set; None for the inputs themselves (with ``weights``).
        method: "ibp", "crown-ibp", "crown", "lbp", "crown-lbp", "alpha-crown", "relaxed-crown-v" (v 1 to 4), or several
            joined by "+", such as "ibp+crown": of each output the best of them.
        weights: what parameters range over, a RelativeBox or lower and upper ends by parameter name.
        rows: a specification [R, K] or [B, R, K]; its rows are folded into the last layer and bounded instead of outputs.
        strategy: lines of piecewise-linear functions: "tight" for certifiably trained networks, "adaptive" for others.
        rigor: the arithmetic. None takes the model's own floats; "float64" makes rounding errors tiny; "rigorous" also
            subtracts them, so that a bound is never above the exact one (see :mod:`stalwart.bounds.rounding`).

    Raises:
        InputError: inputs out of range, an operator without a rule (named with its module), a model in training mode.
        UsageError: an unknown method or strategy, or a set of weights for the inputs.
    """
    within = _of_inputs(x, within)
    if "+" in method:
        each = [
            bound(model, x, within, one, weights=weights, rows=rows, strategy=strategy, rigor=rigor)
            for one in method.split("+")
        ]
        # NaN proves nothing, so that another method's number stands.
        return Bounds(
            functools.reduce(torch.fmax, [one.lower for one in each]),
            functools.reduce(torch.fmin, [one.upper for one in each]),
        )
    known = propagate(model, x, within, method, weights=weights, strategy=strategy, rigor=rigor)
    if rows is None:
        rows = torch.eye(known.graph.output.shape[0], dtype=known.region.box.lower.dtype, device=x.device)
    spec = rows.to(known.region.box.lower).expand(len(x), *rows.shape[-2:])
    found = finish(known, torch.cat([spec, -spec], 1), find_method(method))
    return Bounds(found[:, : spec.shape[1]], -found[:, spec.shape[1] :])


def margin_bound(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    within: ThreatSet | RelativeBox | None = None,
    method: str = "ibp",
    **options: Any,
) -> Tensor:
    """Return a lower bound [B] of min over j != y of f_y - f_j over the threat set; options as in :func:`bound`.

    An input is proven robust where it is above 0; NaN proves nothing.
    """
    return margin_bounds(model, x, y, within, method, **options).amin(1)


def margin_bounds(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    within: ThreatSet | RelativeBox | None = None,
    method: str = "ibp",
    *,
    weights: Weights | None = None,
    strategy: str = "adaptive",
    rigor: Rigor | None = None,
) -> Tensor:
    """Return lower bounds [B, K - 1] of f_y - f_j, j in increasing order without y; see :func:`bound`."""
    check_labels(y, len(x))
    within = _of_inputs(x, within)
    if "+" in method:
        options: dict[str, Any] = {"weights": weights, "strategy": strategy, "rigor": rigor}
        each = [margin_bounds(model, x, y, within, one, **options) for one in method.split("+")]
        return functools.reduce(torch.fmax, each)
    known = propagate(model, x, within, method, weights=weights, strategy=strategy, rigor=rigor)
    check_labels(y, len(x), known.graph.output.shape[0])
    spec = margin_rows(y, known.graph.output.shape[0]).to(known.region.box.lower)
    return finish(known, spec, find_method(method))


def _of_inputs(x: Tensor, within: ThreatSet | RelativeBox | None) -> ThreatSet | None:
    if isinstance(within, RelativeBox):
        raise UsageError(f"{within.describe()} is a set of weights; give it as weights=, and within= a set of inputs.")
    if within is not None:
        check_images(x, within.low, within.high)
    return within


def margin_rows(y: Tensor, classes: int) -> Tensor:
    """Return e_y - e_j for every j != y: [B, K - 1, K]."""
    eye = torch.eye(classes, device=y.device)
    others = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    others = others + (others >= y[:, None])
    return eye[y][:, None] - eye[others]


def propagate(
    model: nn.Module,
    x: Tensor,
    within: ThreatSet | None = None,
    method: str = "ibp",
    *,
    weights: Weights | None = None,
    strategy: str = "adaptive",
    rigor: Rigor | None = None,
) -> Propagation:
    """Return intervals of every node for a method; :func:`finish` bounds the output from them."""
    chosen = find_method(method)
    check_strategy(strategy)
    graph = prepare(model, x)
    kind = x.dtype if rigor is None else torch.float64
    base = x.to(kind)
    region = Region(Interval(base, base)) if within is None else Region.around(base, within)
    if rigor == "rigorous":
        if chosen.depth is not None or {chosen.inner, chosen.outer} - {"interval", "walk"}:
            raise UsageError(f"rigor='rigorous' goes with 'ibp', 'crown-ibp' and 'crown', not with '{method}'.")
        rounding.check(graph)
        if weights is not None or region.within is not None:
            raise UsageError(
                "rigor='rigorous' covers boxes of inputs (Linf), not weights or other norms; use 'float64'."
            )
        if within is not None:
            region = Region(rounding.outward(region.box, within.low, within.high))
    fixed = graph.fixed(
        model, None if rigor is None else kind, given=_weight_intervals(model, weights, kind), moved=moved
    )
    if rigor == "rigorous":
        check_constants(graph, fixed)
    # Optimised slopes hand on no gradients, so that none need be kept.
    with torch.set_grad_enabled(torch.is_grad_enabled() and chosen.inner != "ascent"):
        return Propagation(graph, fixed, region, strategy, REFINERS[chosen.inner](chosen.depth), rigor == "rigorous")


def prepare(model: nn.Module, x: Tensor) -> Graph:
    """Trace a model for bounding, and refuse what cannot be bounded."""
    if is_random(model):
        raise InputError(
            "the model is randomised; bound it inside stochastic.noise(model, 'off') or certify by smoothing."
        )
    for name, module in model.named_modules():
        if module.training and isinstance(module, nn.modules.dropout._DropoutNd | nn.modules.batchnorm._BatchNorm):
            raise InputError(
                f"module '{name}' ({type(module).__name__}) is in training mode, where outputs are random or depend on the "
                "batch; call model.eval() first."
            )
    graph = trace(model, x)
    if len(graph.output.shape) != 1:
        raise InputError(f"the model must return [B, K], but one sample's output has shape {list(graph.output.shape)}.")
    return graph


def _weight_intervals(model: nn.Module, weights: Weights | None, dtype: torch.dtype) -> Mapping[str, Interval] | None:
    if weights is None:
        return None
    named = dict(model.named_parameters())
    ends = weights.bounds(weights.select(model)) if isinstance(weights, RelativeBox) else weights
    for name in ends:
        if name not in named:
            raise UsageError(f"the model has no parameter '{name}'.{suggest(name, named)}")
    # A parameter that two modules share varies under each of its names.
    chosen = {id(named[name]): Interval(low.to(dtype), high.to(dtype)) for name, (low, high) in ends.items()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: chosen[id(parameter)] for name, parameter in every if id(parameter) in chosen}


def _by_interval(depth: int | None) -> Refine | None:
    return None


def _by_forms(depth: int | None) -> Refine | None:
    def refine(known: Propagation, node: Node, held: Interval) -> Interval:
        return held if node is known.graph.input else known.concretise(known.forms(node))

    return refine


def _by_walk(depth: int | None) -> Refine | None:
    def refine(known: Propagation, node: Node, held: Interval) -> Interval:
        if node is known.graph.input:
            return held
        return entries(known, node, known.wanted(node), None if depth is None else depth - 1, "forms")

    return refine


def _by_ascent(depth: int | None) -> Refine | None:
    return refine(Ascent(14, 0.7, 0.95))


REFINERS: dict[str, Callable[[int | None], Refine | None]] = {
    "interval": _by_interval,
    "forms": _by_forms,
    "walk": _by_walk,
    "ascent": _by_ascent,
}


def finish(known: Propagation, rows: Tensor, method: Method) -> Tensor:
    """Return lower bounds [B, R] of rows [B, R, K] of the output."""

    def begin(walk: BackwardWalk) -> None:
        walk.send(known.graph.output, rows.clone())

    if method.outer == "ascent":
        return optimise(known, rows, Ascent(40, 0.5))
    if method.outer == "walk":
        return lower_bound(known, begin, depth=None if method.depth is None else method.depth - 1, end="forms")
    return lower_bound(known, begin, depth=0, end=method.outer)
