"""One box of inputs and its unsafe sets, ready to be bounded: everything that the searches share."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.bounds.alpha import Ascent, refine
from stalwart.bounds.interval import Interval
from stalwart.bounds.methods import prepare
from stalwart.bounds.propagation import Propagation, Refine
from stalwart.bounds.region import Region
from stalwart.certify.violate import inside, padded
from stalwart.core.errors import InputError
from stalwart.graph import Graph, Node
from stalwart.interchange.property import Case


class OutOfTime(Exception):
    """The deadline passed in the middle of a bound."""


@dataclass(frozen=True, eq=False)
class Network:
    """A network in both precisions, without gradients, and its graph.

    Attributes:
        single, double: the module in float32 and float64.
        shape: of one input.
        outputs: how many numbers one output has.
        graph: of the module in float64.
        fixed: values of nodes that do not depend on the input, in float64.
    """

    single: nn.Module
    double: nn.Module
    shape: tuple[int, ...]
    outputs: int
    graph: Graph
    fixed: dict[Node, Any]

    @staticmethod
    def of(model: nn.Module, shape: tuple[int, ...]) -> "Network":
        """Prepare a module that maps [B, *shape] to [B, K].

        Raises:
            InputError: an operator without a rule, or what cannot be traced.
        """
        double = copy.deepcopy(model).double().eval().requires_grad_(False)
        graph = prepare(double, torch.zeros(2, *shape, dtype=torch.float64))
        single = copy.deepcopy(model).float().eval().requires_grad_(False)
        with torch.no_grad():
            fixed = graph.fixed(double)
        return Network(single, double, shape, graph.output.shape[0], graph, fixed)

    def bound(self, lower: Tensor, upper: Tensor, refined: Refine | None, deadline: float) -> Propagation:
        """Return what is known over boxes [N, n] in float64.

        Raises:
            OutOfTime: the deadline passed.
        """
        box = Interval(lower.unflatten(1, self.shape), upper.unflatten(1, self.shape))
        with torch.no_grad():
            return Timed(self.graph, self.fixed, Region(box), refined, deadline)


class Timed(Propagation):
    """A propagation that gives up at a deadline, also in the middle of a backward walk."""

    def __init__(
        self, graph: Graph, fixed: dict[Node, Any], region: Region, refined: Refine | None, deadline: float
    ) -> None:
        self.deadline = deadline
        super().__init__(graph, fixed, region, "adaptive", refined)

    def fixed(self, value: Any) -> Any:
        """Return a fixed value, as every rule with weights asks for."""
        if time.monotonic() > self.deadline:
            raise OutOfTime
        return super().fixed(value)


@dataclass(frozen=True, eq=False)
class Problem:
    """A network and one case of a property.

    Attributes:
        network: what is verified.
        case: box and unsafe sets.
        C, d: the unsafe sets in float64, [Q, R, K] and [Q, R], a set's rows repeated to the same number.
        judge: tells of inputs [N, n] in float32 which one is a counterexample, as its number, or None.
        deadline: the moment of :func:`time.monotonic` to stop at.
    """

    network: Network
    case: Case
    C: Tensor
    d: Tensor
    judge: Callable[[Tensor], int | None]
    deadline: float

    @staticmethod
    def of(network: Network, case: Case, judge: Callable[[Tensor], int | None], deadline: float) -> "Problem":
        """Pad the unsafe sets to the same number of rows."""
        C, d = padded(case, max(len(one.d) for one in case.unsafe), torch.float64)
        if C.shape[2] != network.outputs or len(case.lower) != torch.Size(network.shape).numel():
            raise InputError(
                f"the property speaks of {len(case.lower)} inputs and {C.shape[2]} outputs, the network has "
                f"{torch.Size(network.shape).numel()} and {network.outputs}."
            )
        return Problem(network, case, C, d, judge, deadline)

    def left(self) -> float:
        """Return the seconds left, at least 0."""
        return max(0.0, self.deadline - time.monotonic())

    def known(self, refined: Refine | None) -> Propagation:
        """Return what is known over the whole box."""
        return self.network.bound(self.case.lower[None], self.case.upper[None], refined, self.deadline)

    def witness(self, x: Tensor) -> Tensor | None:
        """Return the first of some inputs [N, n] that is a counterexample once moved into the box, in float32."""
        candidates = inside(x.float(), self.case)
        at = self.judge(candidates)
        return None if at is None else candidates[at]


def optimised(iterations: int, rate: float = 0.5, seconds: float = torch.inf) -> Refine:
    """Return the refinement of intermediate intervals: optimised slopes for so many seconds, CROWN afterwards."""
    better, plain = refine(Ascent(iterations, rate)), refine(Ascent(1))
    end = time.monotonic() + seconds
    return lambda known, node, held: (better if time.monotonic() < end else plain)(known, node, held)


def proven(bounds: Tensor) -> Tensor:
    """Tell which lower bounds of C y - d prove something: finite ones above 0. NaN and infinity prove nothing."""
    return bounds.isfinite() & (bounds > 0)
