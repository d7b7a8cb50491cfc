"""Branch and bound on inputs: halve boxes, bound all pieces anew; for networks with few inputs."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.bounds.backward import lower_bound
from stalwart.bounds.propagation import Propagation, Refine
from stalwart.certify.branch import Outcome
from stalwart.certify.problem import OutOfTime, Problem, optimised, proven
from stalwart.certify.watch import Watch
from stalwart.core.numbers import require

_SIDES = 0.3


@dataclass(frozen=True)
class Halving:
    """How boxes are split.

    Attributes:
        batch: boxes bounded at a time, at most.
        inputs: networks with more inputs that vary than this are not worth it.
        memory: how many boxes may wait.
    """

    batch: int = 1024
    inputs: int = 20
    memory: int = 1 << 22

    def __post_init__(self) -> None:
        require(self.batch >= 2 and self.inputs >= 0 and self.memory >= 1, "batch, inputs and memory must be positive.")


class Boxes:
    """Search over boxes, worst bound first.

    Each piece is bounded in float64 by CROWN with intermediate intervals of its own. A set that is refuted in a box is refuted
    in its halves; a box in which all sets are refuted is done.
    """

    def __init__(self, problem: Problem, how: Halving) -> None:
        self.problem, self.how = problem, how
        self.refined: Refine | None = optimised(1)
        self.bounded = 0

    def run(self) -> Outcome:
        """Search until no box is left, a counterexample is found or time is up."""
        problem = self.problem
        lower, upper = problem.case.lower[None], problem.case.upper[None]
        open_ = torch.ones(1, len(problem.d), dtype=torch.bool)
        worst = torch.full((1,), -torch.inf, dtype=torch.float64)
        gain = torch.ones_like(lower)
        size, begun = 2, time.monotonic()
        first = True
        while len(lower):
            if problem.left() <= 0:
                return Outcome("timeout", float(worst.min()), None, self.bounded, "the time is up")
            if len(lower) > self.how.memory:
                return Outcome("unknown", float(worst.min()), None, self.bounded, "too many boxes wait")
            count = min(len(lower), max(1, size // 2))
            take = worst.topk(count, largest=False).indices if count < len(lower) else torch.arange(count)
            rest = torch.ones(len(lower), dtype=torch.bool)
            rest[take] = False
            if first:
                low, high, mine = lower, upper, open_
                first = False
            else:
                halves = self._halved(lower[take], upper[take], gain[take])
                if halves is None:
                    return Outcome("unknown", float(worst.min()), None, self.bounded, "a box is too small to be halved")
                low, high = halves
                mine = open_[take].repeat(2, 1)
            begun = time.monotonic()
            try:
                bounds, slopes = self._bounds(low, high)
            except OutOfTime:
                return Outcome("timeout", float(worst.min()), None, self.bounded, "the time is up")
            if not self.bounded and bounds.isnan().any():
                return Outcome("unknown", -torch.inf, None, 1, "bounds are not a number: weights or values overflow")
            self.bounded += len(low)
            mine = mine & ~proven(bounds)
            value = torch.where(mine, bounds, torch.inf).nan_to_num(-torch.inf, torch.inf).amin(1)
            alive = mine.any(1)
            low, high, mine, value, slopes = (one[alive] for one in (low, high, mine, value, slopes))
            found = self._sampled(low, high, slopes, mine)
            if found is not None:
                return Outcome("falsified", float(value.min()), found, self.bounded)
            score = torch.where(mine[..., None], slopes.abs(), 0.0).sum(1) * (high - low)
            lower, upper = torch.cat([lower[rest], low]), torch.cat([upper[rest], high])
            open_, worst = torch.cat([open_[rest], mine]), torch.cat([worst[rest], value])
            gain = torch.cat([gain[rest], score])
            # Batches grow as long as they take less than a quarter of a second.
            spent = time.monotonic() - begun
            size = max(2, min(self.how.batch, size * 2 if spent < 0.25 else size, len(lower) * 2))
        return Outcome("verified", torch.inf, None, self.bounded)

    def _halved(self, lower: Tensor, upper: Tensor, score: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cut each box in the middle of the axis with the highest score among those that still have a middle.

        The score is the axis's share of what the linear bound varies by, plus some of its share of the box's sides:
        where relaxations are loose, a flat bound does not mean that an axis does not matter.
        """
        middle, width = (lower + upper) / 2, upper - lower
        can = (middle > lower) & (middle < upper)
        if not can.any(1).all():
            return None
        shares = [one / one.sum(1, keepdim=True).clamp_min(1e-300) for one in (score, width)]
        axis = torch.where(can, shares[0] + _SIDES * shares[1], -1.0).argmax(1, keepdim=True)
        at = middle.gather(1, axis)
        return (
            torch.cat([lower, lower.scatter(1, axis, at)]),
            torch.cat([upper.scatter(1, axis, at), upper]),
        )

    def _bounds(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each box and set the bound of its best row [N, Q] and that row's slopes in the input [N, Q, n]."""
        problem = self.problem
        known: Propagation = problem.network.bound(lower, upper, self.refined, problem.deadline)
        sets, rows, outputs = problem.C.shape
        walk = Watch(known, [known.graph.input])
        with torch.no_grad():
            begin = problem.C.reshape(1, -1, outputs).expand(len(lower), -1, -1)
            found = lower_bound(known, lambda one: one.send(known.graph.output, begin.clone()), walk=walk)
        bounds = found.unflatten(1, (sets, rows)) - problem.d
        best = bounds.nan_to_num(-torch.inf, torch.inf).argmax(2, keepdim=True)
        slopes = walk.seen[known.graph.input].flatten(2).unflatten(1, (sets, rows))
        chosen = slopes.gather(2, best[..., None].expand(-1, -1, -1, slopes.shape[-1])).squeeze(2)
        return bounds.gather(2, best).squeeze(2), chosen

    def _sampled(self, lower: Tensor, upper: Tensor, slopes: Tensor, mine: Tensor) -> Tensor | None:
        """Look for a counterexample at the centres and where the linear bounds are smallest."""
        if not len(lower):
            return None
        index = mine.to(torch.uint8).argmax(1)
        slope = slopes[torch.arange(len(lower)), index]
        corner = torch.where(slope >= 0, lower, upper)
        return self.problem.witness(torch.cat([corner, (lower + upper) / 2]))


def varying(problem: Problem) -> int:
    """Return for how many inputs the box leaves a float32 network a choice."""
    low, high = problem.case.ends(torch.float32)
    return int((high > low).sum())
