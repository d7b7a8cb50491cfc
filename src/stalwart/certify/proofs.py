"""Which samples which method proves, over several radii: what a report shows of certificates."""

import copy
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stalwart.bounds.backward import out_of_memory
from stalwart.bounds.methods import Method, find_method, margin_bound, propagate
from stalwart.bounds.propagation import Propagation
from stalwart.certify.dataset import COMPLETE
from stalwart.certify.neurons import LayerStatus, neuron_status, together
from stalwart.certify.problem import proven
from stalwart.certify.verify import robustness_property, verify
from stalwart.core.checks import check_images, check_labels
from stalwart.core.errors import InputError
from stalwart.core.numbers import require
from stalwart.core.progress import Advance, silent
from stalwart.sets import Linf, ThreatSet

_BATCH = 32
_CHUNK_BYTES = 256 << 20
_FORMS_BYTES = 2 << 30
"""The most that linear forms of one input may take."""
_WALK_BYTES = 8 << 30
"""The most coefficients, in bytes, that the walks of one input may touch: more takes minutes for each."""


@dataclass(frozen=True, eq=False)
class MethodProofs:
    """What one method proves at the main radius.

    Attributes:
        method: its name.
        certified: [N] bool; None if the method was refused.
        seconds: the time all samples took.
        note: why it was refused, or what it left undecided.
    """

    method: str
    certified: Tensor | None
    seconds: float
    note: str = ""


@dataclass(frozen=True, eq=False)
class Proofs:
    """What all methods prove.

    Attributes:
        methods: each one by itself, at the main radius; branch and bound tries what others left open.
        curve: by radius, the samples [N] that any method proves there; complete verification runs at the main radius only.
        layers: neurons by state, by interval bounds at the main radius; empty where those do not exist.
    """

    methods: list[MethodProofs]
    curve: dict[float, Tensor]
    layers: list[LayerStatus]


def prove(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    within: ThreatSet,
    methods: Sequence[str],
    radii: Sequence[float | int] = (),
    strategy: str = "tight",
    timeout: float | int = 10.0,
    seed: int = 0,
    broken: Tensor | None = None,
    advance: Advance = silent,
) -> Proofs:
    """Certify every sample by every method, and by the best of them at further radii; all bounds are computed in float64.

    Wrongly classified samples are bounded like any other: a proof for one of them shows an error.

    Args:
        model: maps [B, ...] to logits [B, K]; left as it was.
        x: inputs [N, ...] in data units.
        y: labels [N].
        within: the threat set, with one radius for all samples.
        methods: bounding methods, and perhaps "branch-and-bound".
        radii: further radii for the curve.
        strategy: lines of piecewise-linear functions, see :func:`stalwart.bounds.bound`.
        timeout: seconds for the complete verification of one sample, above 0.
        seed: root of the random starts of complete verification.
        broken: samples [N] with a known counterexample, which complete verification need not look for again.
        advance: called with the number of finished methods and radii.

    Raises:
        InputError: inputs out of range, or labels that do not fit.
        UsageError: an unknown method, or no method at all.
    """
    require(len(methods) > 0, "name at least one bounding method, such as ibp.")
    require(timeout > 0, f"timeout must be above 0 seconds, got {timeout}.")
    check_images(x, within.low, within.high)
    check_labels(y, len(x))
    cheap = [name for name in methods if name != COMPLETE]
    for name in cheap:
        find_method(name)
    double = copy.deepcopy(model).double().eval().requires_grad_(False)
    x = x.clamp(within.low, within.high).double()
    layers = _layers(double, x, within, strategy)
    rows = []
    for name in cheap:
        rows.append(_attempted(double, x, y, within, name, strategy))
        advance(len(rows), name)
    usable = [row.method for row in rows if row.certified is not None]
    best = _any(rows, x)
    if COMPLETE in methods:
        rows.append(_completed(double.cpu(), x.cpu(), y.cpu(), within, best.cpu(), broken, timeout, seed))
        double = double.to(x.device)
        best = _any(rows, x)
        advance(len(rows), COMPLETE)
    curve = {within.size: best}
    for eps in sorted({float(eps) for eps in radii} - {within.size}):
        curve[eps] = _best(double, x, y, within.with_eps(eps), usable, strategy)
        advance(len(rows) + len(curve) - 1, f"eps {eps:g}")
    # A proof over a large set holds in every smaller one.
    ordered = sorted(curve, reverse=True)
    for larger, eps in itertools.pairwise(ordered):
        curve[eps] = curve[eps] | curve[larger]
    return Proofs(rows, dict(sorted(curve.items())), layers)


def _any(rows: Sequence[MethodProofs], x: Tensor) -> Tensor:
    none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    held = [row.certified.to(x.device) for row in rows if row.certified is not None]
    return torch.stack([none, *held]).any(0)


def _layers(model: nn.Module, x: Tensor, within: ThreatSet, strategy: str) -> list[LayerStatus]:
    try:
        with torch.no_grad():
            batches = x.split(_BATCH)
            return together(
                [neuron_status(propagate(model, part, within, "ibp", strategy=strategy)) for part in batches]
            )
    except InputError:
        return []  # the method's own row says why


def _attempted(model: nn.Module, x: Tensor, y: Tensor, within: ThreatSet, name: str, strategy: str) -> MethodProofs:
    """Return what a method proves, or why it cannot be used on this model."""
    begun = time.monotonic()
    certified, note = None, ""
    try:
        certified = _proven(model, x, y, within, name, strategy)
    except _Refused as problem:
        note = str(problem)
    except InputError as problem:
        note = f"refused: {problem}"
    except (RuntimeError, MemoryError) as problem:
        if not out_of_memory(problem):
            raise
        note = "refused: it ran out of memory"
    return MethodProofs(name, certified, time.monotonic() - begun, note)


class _Refused(Exception):
    """A method is too large for a network."""


def _proven(model: nn.Module, x: Tensor, y: Tensor, within: ThreatSet, name: str, strategy: str) -> Tensor:
    """Return which samples a bounding method proves, [N] bool."""
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    if not len(x):
        return found
    chosen, begun, size = find_method(name), 0, _BATCH
    with torch.no_grad():
        known = propagate(model, x[:_BATCH], within, "ibp", strategy=strategy)
        size = _room(known, chosen)
        while begun < len(x):
            part = slice(begun, begun + size)
            found[part] = proven(margin_bound(model, x[part], y[part], within, name, strategy=strategy))
            begun += size
    return found


def _best(model: nn.Module, x: Tensor, y: Tensor, within: ThreatSet, methods: Sequence[str], strategy: str) -> Tensor:
    """Return which samples any method proves; a method tries what those before it left open."""
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for name in methods:
        left = (~found).nonzero().flatten()
        row = _attempted(model, x[left], y[left], within, name, strategy)
        if row.certified is not None:
            found[left] = row.certified
    return found


def _completed(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    within: ThreatSet,
    known: Tensor,
    broken: Tensor | None,
    timeout: float | int,
    seed: int,
) -> MethodProofs:
    """Verify completely what is classified rightly, and neither ``known`` to be proven nor known to be broken."""
    if not isinstance(within, Linf):
        return MethodProofs(COMPLETE, None, 0.0, f"refused: it takes Linf boxes only, not {type(within).__name__}")
    begun, certified, verdicts = time.monotonic(), known.clone(), []
    try:
        with torch.no_grad():
            logits = model(x)
        own = logits.gather(1, y[:, None]) - logits.scatter(1, y[:, None], -torch.inf)
        left = ~known & (own.amin(1) > 0)
        if broken is not None:
            left &= ~broken.cpu()
        for at in left.nonzero().flatten().tolist():
            box = within.select(torch.tensor([at]))
            prop = robustness_property(x[at], int(y[at]), box, logits.shape[1])
            verdicts.append(verify(model, prop, timeout, seed + at, input_shape=tuple(x.shape[1:])).status)
            certified[at] = verdicts[-1] == "verified"
    except InputError as problem:
        return MethodProofs(COMPLETE, None, time.monotonic() - begun, f"refused: {problem}")
    return MethodProofs(COMPLETE, certified, time.monotonic() - begun, undecided_note(verdicts, timeout))


def undecided_note(verdicts: Sequence[str], timeout: float | int) -> str:
    """Say how many samples complete verification neither proved nor disproved, and how many of them for lack of time."""
    late = verdicts.count("timeout")
    count = late + verdicts.count("unknown")
    return f"{count} undecided, {late} of them after {timeout:g} s" if count else ""


def _room(known: Propagation, method: Method) -> int:
    """Return how many inputs fit in one batch.

    Raises:
        _Refused: not even one does.
    """
    sizes = {node: math.prod(node.shape) for node in known.graph.nodes if node.batched}
    inputs = sizes[known.graph.input]
    if method.inner in ("walk", "ascent") and method.depth is None:
        rows, touched, before = 0, 0, 0
        for node, size in sizes.items():
            before += size
            if node in known.operands:
                count = int(known.wanted(node).flatten(1).sum(1).max())
                rows, touched = rows + count, touched + 16 * count * before
        if touched > _WALK_BYTES:
            raise _Refused(
                f"refused: walks from {rows:,} neurons that may bend would touch {touched / 2**30:.0f} GiB of coefficients "
                f"for one input; the limit is {_WALK_BYTES >> 30} GiB"
            )
    if "forms" in (method.inner, method.outer) or method.depth is not None:
        each = 16 * inputs * sum(sizes.values())
        if each > _FORMS_BYTES:
            raise _Refused(
                f"refused: linear forms of all neurons in {inputs:,} inputs take {each / 2**30:.1f} GiB for one input; the "
                f"limit is {_FORMS_BYTES >> 30} GiB"
            )
        return max(1, min(_BATCH, _CHUNK_BYTES // each))
    return _BATCH
