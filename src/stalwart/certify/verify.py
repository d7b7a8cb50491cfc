"""Complete verification: a proof, a counterexample, or an honest "unknown".

A property lists boxes of inputs and, for each, unsafe sets of outputs C y <= d. A set is refuted in a part of its box when some
row has a proven lower bound of c·y above its d. The property is verified when all sets of all boxes are refuted everywhere,
and falsified when one input was found that is unsafe.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from stalwart.bounds.alpha import Ascent
from stalwart.certify.boxes import Boxes, Halving, varying
from stalwart.certify.branch import Branching, Outcome, Search
from stalwart.certify.problem import Network, OutOfTime, Problem, optimised, proven
from stalwart.certify.violate import Descent, descend, inside
from stalwart.core.checks import check_images, check_labels
from stalwart.core.errors import InputError
from stalwart.core.numbers import require
from stalwart.core.random import generator
from stalwart.interchange import Case, Conjunction, OnnxSession, Property, read_onnx, read_vnnlib, require_same
from stalwart.interchange.onnx_file import has_extra
from stalwart.sets import Linf, ThreatSet

_ROOT = Ascent(20, 0.5)
_COMPARED = 4
"""How many boxes of a property, and inputs of each, are compared with onnxruntime."""
_SHARE = 0.25
"""The share of the time left that better intermediate intervals may take."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """What is known of a property.

    Attributes:
        status: "verified", "falsified", "unknown" (the methods ended without an answer) or "timeout".
        bound: the smallest proven lower bound of C y - d over all that was left when the search ended, of the largest row of
            a set; infinity if nothing was left, -infinity if nothing was bounded.
        witness: an input that violates the property, shaped like one input, float32; None unless falsified.
        output: the network's output for it in float64 [K].
        domains: how many pieces were bounded.
        seconds: the time it took.
        reason: why nothing was decided.
        notes: what else whoever relies on the verdict should know.
    """

    status: str
    bound: float
    witness: Tensor | None = None
    output: Tensor | None = None
    domains: int = 0
    seconds: float = 0.0
    reason: str = ""
    notes: tuple[str, ...] = ()


def verify(
    model: nn.Module | Path | str,
    prop: Property | Path | str,
    timeout: float | int = 60.0,
    seed: int = 0,
    *,
    input_shape: tuple[int, ...] | None = None,
    descent: Descent | None = None,
    halving: Halving | None = None,
    branching: Branching | None = None,
) -> Verdict:
    """Prove a property of a network or find a counterexample.

    First gradient descent looks for a counterexample. Then CROWN and alpha-CROWN bound each whole box. What they
    leave open goes to branch and bound, on inputs where few of them vary, else on neurons (beta-CROWN). All that
    counts as proven is computed in float64, rounded to nearest. A witness violates the property without tolerance
    both in the module in float64 and, for an ONNX file, in onnxruntime, which is first compared with the module on
    random inputs of the boxes.

    Two exceptions are told in the verdict's ``notes``: without onnxruntime nothing is compared; and where the range of
    an input holds no float32 number, as that of X_0 = 0.1, a witness has the nearest one, and proofs cover it too.

    Args:
        model: a module that maps [B, ...] to [B, K], taken in evaluation mode, or the path of an ONNX file.
        prop: the property, or the path of a VNN-LIB file.
        timeout: seconds, above 0.
        seed: root of the random starts of the search for counterexamples.
        input_shape: the shape of one input; by default ``model.input_shape`` if there is one, else flat.
        descent, halving, branching: hyper-parameters of the searches.

    Raises:
        FileError: a file is missing or damaged.
        InputError: network and property do not fit together, the network has an operator without a bound, or onnxruntime
            computes something else from the file.
        UsageError: an impossible option.
    """
    require(timeout > 0, f"timeout must be above 0 seconds, got {timeout}.")
    begun = time.monotonic()
    session, notes = (None, ()) if isinstance(model, nn.Module) else _second_opinion(model)
    module = model if isinstance(model, nn.Module) else read_onnx(model)
    wanted = prop if isinstance(prop, Property) else read_vnnlib(prop)
    shape = tuple(getattr(module, "input_shape", (wanted.inputs,))) if input_shape is None else input_shape
    if torch.Size(shape).numel() != wanted.inputs:
        raise InputError(
            f"the property speaks of {wanted.inputs} inputs, but one input of the network has shape {list(shape)}. Do they "
            "belong together? For a module of your own pass input_shape."
        )
    wanted, moved = _readable(wanted)
    notes += moved
    network = Network.of(module, shape)
    if session is not None:
        require_same(session, network.single, network.double, _drawn(wanted, seed).unflatten(1, shape))
    judge = _judge(network, wanted, session)
    for case in wanted.cases:
        # An unsafe set without rows holds every output, so that any input of the box is a counterexample.
        if any(len(one.d) == 0 for one in case.unsafe):
            return replace(_anywhere(network, case, judge, begun), notes=notes)
    problems = [Problem.of(network, case, judge, begun + timeout) for case in wanted.cases]
    run = _Run(problems, seed, descent or Descent(), halving or Halving(), branching or Branching())
    outcome = run.outcome()
    seconds = time.monotonic() - begun
    if outcome.witness is None:
        return Verdict(outcome.status, outcome.bound, None, None, outcome.domains, seconds, outcome.reason, notes)
    x = outcome.witness.unflatten(0, shape)
    with torch.no_grad():
        y = network.double(x[None].double())[0]
    return Verdict("falsified", outcome.bound, x, y, outcome.domains, seconds, notes=notes)


def robustness_property(x: Tensor, y: int, within: ThreatSet, classes: int) -> Property:
    """Return the property that all inputs of a box around x [...] are classified as y.

    A tie counts as an error: the unsafe sets are f_y - f_j <= 0 for each j != y.

    Args:
        x: one input in data units.
        y: its class, from 0 to ``classes`` - 1.
        within: the box, in float64 around the numbers of x.
        classes: K.

    Raises:
        InputError: x out of range, or a class that does not exist.
        UsageError: another threat set than Linf.
    """
    require(isinstance(within, Linf), f"robustness over a box only; {type(within).__name__} is none.")
    check_images(x[None], within.low, within.high)
    check_labels(torch.tensor([y]), 1, classes)
    lower, upper = within.bounds(x[None].double())
    eye = torch.eye(classes, dtype=torch.float64)
    unsafe = tuple(
        Conjunction((eye[y] - eye[j])[None], torch.zeros(1, dtype=torch.float64)) for j in range(classes) if j != y
    )
    return Property(x.numel(), classes, (Case(lower.flatten(), upper.flatten(), unsafe),))


def _second_opinion(path: Path | str) -> tuple[OnnxSession | None, tuple[str, ...]]:
    if has_extra("onnxruntime"):
        return OnnxSession(path), ()
    return None, (
        "onnxruntime is not installed, so that neither the import of the file nor a witness was checked with it",
    )


def _drawn(wanted: Property, seed: int) -> Tensor:
    """Return a few inputs [N, n] drawn uniformly from the first boxes, in float32."""
    source, drawn = generator(seed, "onnxruntime"), []
    for case in wanted.cases[:_COMPARED]:
        share = torch.rand(_COMPARED, wanted.inputs, generator=source)
        drawn.append(inside((case.lower + share * (case.upper - case.lower)).float(), case))
    return torch.cat(drawn)


def _readable(wanted: Property) -> tuple[Property, tuple[str, ...]]:
    """Return the property as a network that reads float32 meets it, and a note if that is another one."""
    cases = tuple(case.readable() for case in wanted.cases)
    pairs = list(zip(cases, wanted.cases, strict=True))
    moved = sum(((a.lower < b.lower) | (a.upper > b.upper)).long() for a, b in pairs)
    count = int((torch.as_tensor(moved) > 0).sum())
    note = f"no float32 lies in the range of {count} inputs; the nearest ones stand for it"
    return replace(wanted, cases=cases), (note,) if count else ()


def _anywhere(network: Network, case: Case, judge: Callable[[Tensor], int | None], begun: float) -> Verdict:
    x = inside(((case.lower + case.upper) / 2).float()[None], case)
    found = judge(x) is not None
    seconds = time.monotonic() - begun
    if not found:
        return Verdict(
            "unknown", -torch.inf, None, None, 0, seconds, "no float32 lies in the box, all of which is unsafe"
        )
    x = x.unflatten(1, network.shape)
    with torch.no_grad():
        y = network.double(x.double())
    return Verdict("falsified", -torch.inf, x[0], y[0], 0, seconds)


def _judge(network: Network, wanted: Property, session: OnnxSession | None) -> Callable[[Tensor], int | None]:
    """Return what tells a counterexample: it violates the property in float64, and in onnxruntime if there is a file."""

    def judge(x: Tensor) -> int | None:
        with torch.no_grad():
            y = network.double(x.double().unflatten(1, network.shape))
        for at in wanted.violated_by(x, y).nonzero().flatten().tolist():
            if session is None or bool(wanted.violated_by(x[at : at + 1], session.run(x[at : at + 1]))):
                return int(at)
        return None

    return judge


@dataclass(frozen=True, eq=False)
class _Run:
    """One verification: attacks on all cases first, then the proofs."""

    problems: list[Problem]
    seed: int
    descent: Descent
    halving: Halving
    branching: Branching

    def outcome(self) -> Outcome:
        """Return how it ended; "verified" only if every case is."""
        for number, problem in enumerate(self.problems):
            found = self._attacked(problem, number)
            if found is not None:
                return Outcome("falsified", -torch.inf, found)
        domains, bound = 0, torch.inf
        undecided: list[Outcome] = []
        for problem in self.problems:
            try:
                one = self._proved(problem)
            except OutOfTime:
                one = Outcome("timeout", -torch.inf, None, 0, "the time is up")
            domains += one.domains
            bound = min(bound, one.bound)
            if one.status == "falsified":
                return Outcome("falsified", one.bound, one.witness, domains)
            if one.status != "verified":
                undecided.append(one)
                if one.status == "timeout":
                    break
        if undecided:
            last = undecided[-1]
            return Outcome(last.status, bound, None, domains, last.reason)
        return Outcome("verified", bound, None, domains)

    def _attacked(self, problem: Problem, number: int) -> Tensor | None:
        network = problem.network
        x, _ = descend(network.single, network.shape, problem.case, self.descent, self.seed + number, problem.deadline)
        return problem.witness(x)

    def _proved(self, problem: Problem) -> Outcome:
        if varying(problem) <= self.halving.inputs:
            return Boxes(problem, self.halving).run()
        known = problem.known(optimised(1))
        search = Search(problem, known, self.branching)
        root = search.exact.improve(search.exact.root(problem.C, problem.d), _ROOT)
        open_ = ~proven(root.bound)
        if not open_.any():
            return Outcome("verified", float(root.bound.min()), None, len(root))
        found = problem.witness(root.corner)
        if found is not None:
            return Outcome("falsified", float(root.bound.min()), found, len(root))
        known = problem.known(optimised(20, seconds=_SHARE * problem.left()))
        search = Search(problem, known, self.branching)
        rest = open_.nonzero().flatten()
        root = search.exact.improve(search.exact.root(problem.C[rest], problem.d[rest]), _ROOT)
        outcome = search.run(root.take((~proven(root.bound)).nonzero().flatten()))
        return Outcome(outcome.status, outcome.bound, outcome.witness, outcome.domains + len(open_), outcome.reason)
