"""Domains of branch and bound: a box with the sign of some neurons decided, bounded in batches with alpha and beta."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from stalwart.bounds.alpha import Ascent, Chosen, Free, free_nodes
from stalwart.bounds.backward import BackwardWalk, lower_bound
from stalwart.bounds.lines import Lines
from stalwart.bounds.propagation import Propagation
from stalwart.bounds.rules.base import batched_arguments
from stalwart.certify.watch import Watch
from stalwart.graph import Node


@dataclass(frozen=True, eq=False)
class Domains:
    """A batch of N domains, each with R rows to bound; "open" neurons are numbered through all layers, U in all.

    Attributes:
        C, d: the rows C y - d, [N, R, K] and [N, R], in float64 whatever the rest is.
        slopes: lower slopes of open neurons [N, R, U].
        place: which neurons are split [N, D]; unused columns hold any number.
        sign: 1 where the neuron is at or above its kink, -1 where at or below, 0 in unused columns [N, D].
        beta: multipliers of the splits [N, R, D], at least 0.
        bound: the best lower bound of the largest row found so far [N].
        corner: where the last linear bound of that row is smallest, flat inputs [N, n].
    """

    C: Tensor
    d: Tensor
    slopes: Tensor
    place: Tensor
    sign: Tensor
    beta: Tensor
    bound: Tensor
    corner: Tensor

    def __len__(self) -> int:
        return len(self.bound)

    def take(self, index: Tensor) -> "Domains":
        """Return some of the domains."""
        return Domains(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def split(self, place: Tensor) -> "Domains":
        """Return 2 N children, those at or above the kink of neuron ``place`` [N] first; beta of the split is 0."""
        both = self.take(torch.arange(len(self)).repeat(2))
        sign = torch.ones(2 * len(self), 1, dtype=self.sign.dtype)
        sign[len(self) :] = -1
        return replace(
            both,
            place=torch.cat([both.place, place.repeat(2)[:, None]], 1),
            sign=torch.cat([both.sign, sign], 1),
            beta=torch.cat([both.beta, torch.zeros_like(both.beta[..., :1]).expand(*both.beta.shape[:2], 1)], 2)
            if both.beta.shape[2]
            else both.beta.new_zeros(*both.d.shape, 1),
        )

    @staticmethod
    def join(parts: list["Domains"]) -> "Domains":
        """Return all domains of several batches."""
        deepest = max(part.place.shape[1] for part in parts)
        even = [part.widened(deepest) for part in parts]
        return Domains(*(torch.cat([getattr(part, name) for part in even]) for name in Domains.__dataclass_fields__))

    def widened(self, depth: int) -> "Domains":
        """Return the same domains with unused columns up to a depth."""
        more = depth - self.place.shape[1]
        if more == 0:
            return self
        pad = torch.nn.functional.pad
        return replace(
            self, place=pad(self.place, (0, more)), sign=pad(self.sign, (0, more)), beta=pad(self.beta, (0, more))
        )

    def to(self, dtype: torch.dtype) -> "Domains":
        """Return the same with all numbers of a type, except C and d, which must not be rounded."""
        floats = {name: getattr(self, name).to(dtype) for name in ("slopes", "beta", "bound", "sign", "corner")}
        return replace(self, **floats)


@dataclass(frozen=True, eq=False)
class Layer:
    """The open neurons of one activation: their flat places in it, and the numbers begin..end that they have."""

    free: Free
    operand: Node
    index: Tensor
    begin: int
    end: int


class Bounder:
    """Bounds domains of one box with the intermediate intervals of the root.

    Attributes:
        known: intervals of the root, for a batch of one.
        layers: where open neurons are.
        lower, upper: ends of the open neurons' operands at the root [U].
        kink: where each bends [U].
    """

    def __init__(self, known: Propagation) -> None:
        self.known = known
        self.layers: list[Layer] = []
        ends: list[Tensor] = []
        begin = 0
        for free in free_nodes(known, known.graph.output):
            (operand,) = batched_arguments(free.node)
            index = free.open.flatten().nonzero().flatten()
            self.layers.append(Layer(free, operand, index, begin, begin + len(index)))
            begin += len(index)
            x = known.interval(operand)
            kink = x.lower.new_full((len(index),), float(free.function.at))
            ends.append(torch.stack([x.lower.flatten()[index], x.upper.flatten()[index], kink]))
        stacked = torch.cat(ends, 1) if ends else known.region.box.lower.new_zeros(3, 0)
        self.lower, self.upper, self.kink = stacked
        self.count = begin

    def to(self, dtype: torch.dtype) -> "Bounder":
        """Return the same with numbers of another type; neurons keep their numbers, even if rounding closes one."""
        other = copy.copy(self)
        other.known = self.known.to(dtype)
        other.layers = [
            replace(one, free=replace(one.free, usual=other.known.lines(one.free.node))) for one in self.layers
        ]
        other.lower, other.upper, other.kink = (end.to(dtype) for end in (self.lower, self.upper, self.kink))
        return other

    def root(self, C: Tensor, d: Tensor) -> Domains:
        """Return one domain for each unsafe set C [Q, R, K], d [Q, R], with CROWN's slopes and no splits."""
        kind = self.lower.dtype
        usual = [one.free.usual.lower_slope.flatten()[one.index] for one in self.layers]
        slopes = torch.cat(usual) if usual else self.lower
        return Domains(
            C,
            d,
            slopes.expand(*d.shape, -1).clone(),
            torch.zeros(len(C), 0, dtype=torch.int64),
            torch.zeros(len(C), 0, dtype=kind),
            torch.zeros(*d.shape, 0, dtype=kind),
            torch.full((len(C),), -torch.inf, dtype=kind),
            self.known.region.box.lower.flatten(1).expand(len(C), -1),
        )

    def ends(self, domains: Domains) -> tuple[Tensor, Tensor]:
        """Return the intervals [N, U] of open neurons with the splits applied."""
        count = len(domains)
        lower, upper = self.lower.expand(count, -1).clone(), self.upper.expand(count, -1).clone()
        if domains.place.shape[1]:
            kink = self.kink[domains.place]
            above = torch.where(domains.sign > 0, kink, -torch.inf)
            below = torch.where(domains.sign < 0, kink, torch.inf)
            lower.scatter_reduce_(1, domains.place, above, "amax")
            upper.scatter_reduce_(1, domains.place, below, "amin")
        return lower, upper

    def open(self, domains: Domains) -> Tensor:
        """Return which neurons [N, U] may still be split."""
        lower, upper = self.ends(domains)
        return (lower < self.kink) & (upper > self.kink)

    def bound(self, domains: Domains) -> Tensor:
        """Return lower bounds [N, R] of C y - d with the slopes and multipliers that the domains have."""
        with torch.no_grad():
            return self._walk(domains, self._prepared(domains), domains.slopes, domains.beta)[0]

    def improve(self, domains: Domains, how: Ascent, beta_rate: float = 0.1) -> Domains:
        """Optimise slopes and multipliers and return the domains with the best ones found."""
        prepared = self._prepared(domains)
        slopes, beta = domains.slopes.clone(), domains.beta.clone()
        kept_slopes, kept_beta = domains.slopes.clone(), domains.beta.clone()
        best = slopes.new_full(domains.d.shape, -torch.inf)
        optimiser = Adam(how.rate, how.decay)
        splits = domains.place.shape[1] > 0
        for iteration in range(how.iterations):
            last = iteration == how.iterations - 1 or not self.count
            with torch.set_grad_enabled(not last):
                slopes.requires_grad_(not last)
                beta.requires_grad_(not last and splits)
                found, seen = self._walk(domains, prepared, slopes, beta)
                total = found.sum()
            better = (found.detach() > best).unsqueeze(-1)
            best = torch.where(better.squeeze(-1), found.detach(), best)
            kept_slopes = torch.where(better, slopes.detach(), kept_slopes)
            kept_beta = torch.where(better, beta.detach(), kept_beta)
            if last or bool((best.amax(1) > 0).all()):
                break
            leaves = [slopes, beta] if splits else [slopes]
            gradients = torch.autograd.grad(total, leaves)
            leaves = [one.detach() for one in leaves]
            optimiser.step(leaves, list(gradients), [1.0, beta_rate / how.rate])
            slopes = leaves[0]
            for layer in self.layers:
                slopes[..., layer.begin : layer.end].clamp_(*layer.free.ends)
            beta = leaves[1].clamp_(min=0) if splits else beta
        bound = torch.maximum(domains.bound, best.amax(1))
        return replace(domains, slopes=kept_slopes, beta=kept_beta, bound=bound, corner=self._corner(seen, best))

    def _corner(self, seen: dict[Node, Tensor], bounds: Tensor) -> Tensor:
        row = bounds.argmax(1)
        box = self.known.region.box
        slope = seen[self.known.graph.input][torch.arange(len(row)), row].flatten(1)
        return torch.where(slope >= 0, box.lower.flatten(1), box.upper.flatten(1))

    def coefficients(self, domains: Domains) -> tuple[Tensor, Tensor]:
        """Return the bounds [N, R], and the coefficients [N, U] of the best row at the outputs of open neurons."""
        with torch.no_grad():
            found, seen = self._walk(domains, self._prepared(domains), domains.slopes, domains.beta)
        return found, self._coefficients(seen, found)

    def _coefficients(self, seen: dict[Node, Tensor], bounds: Tensor) -> Tensor:
        row = bounds.argmax(1)
        each = torch.arange(len(row))
        parts = [seen[one.free.node][each, row].flatten(1)[:, one.index] for one in self.layers]
        return torch.cat(parts, 1) if parts else bounds.new_zeros(len(row), 0)

    def _prepared(self, domains: Domains) -> dict[str, Any]:
        """Return what does not change while slopes do: lines of all nodes, and which open neurons are still open."""
        count = len(domains)
        lower, upper = self.ends(domains)
        lines, still = {}, []
        for one in self.layers:
            low, high = lower[:, one.begin : one.end], upper[:, one.begin : one.end]
            # An empty interval belongs to an infeasible domain; any line is right there.
            high = torch.maximum(low, high)
            mine = one.free.function.lines(low, high, "adaptive")
            usual = one.free.usual
            parts = [
                whole.flatten(1).expand(count, -1).index_copy(1, one.index, own)
                for whole, own in (
                    (usual.lower_slope, mine.lower_slope),
                    (usual.lower_intercept, mine.lower_intercept),
                    (usual.upper_slope, mine.upper_slope),
                    (usual.upper_intercept, mine.upper_intercept),
                )
            ]
            lines[one.free.node] = Lines(*(part.unflatten(1, one.free.node.shape) for part in parts))
            still.append((low < one.free.function.at) & (high > one.free.function.at))
        return {"lines": lines, "open": still}

    def _walk(
        self, domains: Domains, prepared: dict[str, Any], slopes: Tensor, beta: Tensor
    ) -> tuple[Tensor, dict[Node, Tensor]]:
        count, rows = domains.d.shape
        lines = dict(prepared["lines"])
        for one, still in zip(self.layers, prepared["open"], strict=True):
            node, usual = one.free.node, lines[one.free.node]
            own = usual.lower_slope.flatten(1)[:, one.index]
            mine = torch.where(still.unsqueeze(1), slopes[..., one.begin : one.end], own.unsqueeze(1)).transpose(0, 1)
            lower = usual.lower_slope.flatten(1).expand(rows, -1, -1).index_copy(2, one.index, mine)
            at = float(one.free.function.at)
            height = (one.free.function.left + one.free.function.right) * at
            low = usual.lower_intercept if at == 0 else height - at * lower.unflatten(2, node.shape)
            lines[node] = Lines(
                lower.unflatten(2, node.shape),
                low.expand(rows, *low.shape[-len(node.shape) - 1 :]),
                usual.upper_slope,
                usual.upper_intercept,
            )
        view = Chosen(self.known, lines, count)

        def begin(walk: BackwardWalk) -> None:
            walk.send(self.known.graph.output, domains.C.to(slopes).clone())
            if domains.place.shape[1]:
                self._constrain(domains, beta, walk)

        found, seen = self._watched(view, begin)
        return found - domains.d.to(found), seen

    def _watched(self, view: Chosen, begin: Callable[[BackwardWalk], None]) -> tuple[Tensor, dict[Node, Tensor]]:
        walk = Watch(view, [*(one.free.node for one in self.layers), self.known.graph.input])
        return lower_bound(self.known, begin, view, walk), walk.seen

    def linear(self, domain: Domains, begin: Callable[[BackwardWalk], None]) -> tuple[Tensor, Tensor]:
        """Return what the rows that ``begin`` sends are below by: slopes [S, n] and constants [S] of functions of the input.

        In a domain without open neurons they are the rows themselves.
        """
        view = Chosen(self.known, dict(self._prepared(domain)["lines"]), 1)
        with torch.no_grad():
            found, seen = self._watched(view, begin)
            slopes = seen[self.known.graph.input]
            return slopes[0].flatten(1), (found - self.known.region.minimum(slopes))[0]

    def _constrain(self, domains: Domains, beta: Tensor, walk: BackwardWalk) -> None:
        """Add beta (kink - z) for z >= kink and beta (z - kink) for z <= kink: never above 0 in the domain."""
        signed = -beta * domains.sign.unsqueeze(1)
        zeros = beta.new_zeros(*beta.shape[:2], self.count)
        total = zeros.scatter_add(2, domains.place.unsqueeze(1).expand_as(signed), signed)
        walk.add(-(total * self.kink).sum(2))
        for one in self.layers:
            full = beta.new_zeros(*beta.shape[:2], one.free.open[0].numel())
            mine = full.index_copy(2, one.index, total[..., one.begin : one.end])
            walk.send(one.operand, mine.unflatten(2, one.operand.shape))


@dataclass
class Adam:
    """Ascent steps on tensors that are changed in place (Kingma and Ba, 2015, with beta 0.9 and 0.999)."""

    rate: float
    decay: float
    _moments: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _steps: int = 0

    @torch.no_grad()
    def step(self, values: list[Tensor], gradients: list[Tensor], scales: list[float] | None = None) -> None:
        """Move each value up its gradient; ``scales`` are factors on the step size, one a tensor."""
        if not self._moments:
            self._moments = [(torch.zeros_like(one), torch.zeros_like(one)) for one in values]
        self._steps += 1
        first, second = 1 - 0.9**self._steps, 1 - 0.999**self._steps
        for at, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
            mean, square = self._moments[at]
            mean.lerp_(gradient, 0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            rate = self.rate * (1.0 if scales is None else scales[at])
            value.addcdiv_(mean, square.div(second).sqrt_().add_(1e-8), value=rate / first)
        self.rate *= self.decay
