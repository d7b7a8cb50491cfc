"""Branch and bound on neurons: split the sign of one that is open, bound both halves, go on with the worst.

beta-CROWN (Wang et al., 2021, arXiv 2103.06624) bounds; BaBSR scores (Bunel et al., 2020, arXiv 1909.06588) propose neurons,
and the best of a few is chosen by trial (filtered smart branching, De Palma et al., 2021, arXiv 2104.06718).
"""

import heapq
import itertools
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stalwart.bounds.alpha import Ascent
from stalwart.bounds.propagation import Propagation
from stalwart.certify.domains import Bounder, Domains
from stalwart.certify.exact import settle
from stalwart.certify.problem import OutOfTime, Problem, proven
from stalwart.core.numbers import require


@dataclass(frozen=True)
class Branching:
    """How the search runs.

    Attributes:
        batch: domains split at a time, at most.
        candidates: neurons tried for each domain.
        ascent: how slopes and multipliers are optimised in each domain.
        beta_rate: first step size of the multipliers.
        memory: bytes that waiting domains may take.
    """

    batch: int = 128
    candidates: int = 3
    ascent: Ascent = field(default_factory=lambda: Ascent(10, 0.1))
    beta_rate: float = 0.1
    memory: int = 2 << 30

    def __post_init__(self) -> None:
        require(self.batch >= 1 and self.candidates >= 1, "batch and candidates must be at least 1.")
        require(self.beta_rate > 0 and self.memory > 0, "beta_rate and memory must be positive.")


@dataclass(frozen=True, eq=False)
class Outcome:
    """How a search ended.

    Attributes:
        status: "verified", "falsified", "unknown" (nothing left that could be split) or "timeout".
        bound: the smallest lower bound of what was left, infinity if nothing was.
        witness: the counterexample [n] in float32.
        domains: how many domains were bounded.
        reason: why nothing was decided.
    """

    status: str
    bound: float
    witness: Tensor | None = None
    domains: int = 0
    reason: str = ""


class Search:
    """The state of one search over domains.

    Intermediate intervals stay those of the root. Domains are bounded in float32, and what that proves is proven again in
    float64 with the same slopes and multipliers.
    """

    def __init__(self, problem: Problem, known: Propagation, how: Branching) -> None:
        self.problem, self.how = problem, how
        self.exact = Bounder(known)
        self.fast = self.exact.to(torch.float32)
        self.waiting: list[tuple[float, int, Domains]] = []
        self.number = itertools.count()
        self.bounded = 0
        self.stuck = torch.inf
        self.held = 0

    def run(self, domains: Domains) -> Outcome:
        """Search until nothing is left, a counterexample is found or time is up; ``domains`` are those of the root."""
        self._put(domains.to(torch.float32))
        worst = float(domains.bound.min()) if len(domains) else torch.inf
        try:
            while self.waiting:
                worst = min(self.waiting[0][0], self.stuck)
                if self.problem.left() <= 0:
                    raise OutOfTime
                if self.held > self.how.memory:
                    what = f"more than {self.how.memory} bytes of domains wait"
                    return Outcome("unknown", worst, None, self.bounded, what)
                found = self._expand(self._pop())
                if found is not None:
                    return Outcome("falsified", worst, found, self.bounded)
        except OutOfTime:
            return Outcome("timeout", worst, None, self.bounded, "the time is up")
        if self.stuck < torch.inf:
            return Outcome("unknown", self.stuck, None, self.bounded, "a domain cannot be split further nor be proven")
        return Outcome("verified", torch.inf, None, self.bounded)

    def _put(self, domains: Domains) -> None:
        for at in range(len(domains)):
            one = domains.take(torch.tensor([at]))
            heapq.heappush(self.waiting, (float(one.bound), next(self.number), one))
            self.held += _size(one)

    def _pop(self) -> Domains:
        count = min(len(self.waiting), self.how.batch)
        parts = [heapq.heappop(self.waiting)[2] for _ in range(count)]
        self.held -= sum(_size(one) for one in parts)
        return Domains.join(parts)

    def _expand(self, batch: Domains) -> Tensor | None:
        """Split a batch, put what is not proven back, and return a counterexample if one shows up."""
        place, able = self._choose(batch)
        for at in (~able).nonzero().flatten():
            bound, point = settle(self.exact, batch.take(at[None]).to(torch.float64))
            found = None if point is None else self.problem.witness(point)
            if found is not None:
                return found
            if not 0 < bound < torch.inf:
                self.stuck = min(self.stuck, bound)
        batch, place = batch.take(able.nonzero().flatten()), place[able]
        if not len(batch):
            return None
        children = self.fast.improve(batch.split(place), self.how.ascent, self.how.beta_rate)
        self.bounded += len(children)
        children, alive = self.confirmed(children)
        rest = children.take(alive.nonzero().flatten())
        self._put(rest)
        return self.problem.witness(rest.corner.double()) if len(rest) else None

    def confirmed(self, domains: Domains) -> tuple[Domains, Tensor]:
        """Bound what float32 has proven again in float64; return the domains, and which of them [N] are not proven."""
        at = (domains.bound > 0).nonzero().flatten()
        alive = torch.ones(len(domains), dtype=torch.bool)
        if not len(at):
            return domains, alive
        again = self.exact.bound(domains.take(at).to(torch.float64))
        sure = proven(again).any(1)
        alive[at[sure]] = False
        bound = domains.bound.clone()
        # What only looked proven waits like the rest.
        bound[at] = torch.where(sure, bound[at], 0.0)
        return replace(domains, bound=bound), alive

    def _choose(self, batch: Domains) -> tuple[Tensor, Tensor]:
        """Return a neuron for each domain [N], and whether there is one."""
        if not self.fast.count:
            return torch.zeros(len(batch), dtype=torch.int64), torch.zeros(len(batch), dtype=torch.bool)
        _, coefficients = self.fast.coefficients(batch)
        lower, upper = self.fast.ends(batch)
        still = (lower < self.fast.kink) & (upper > self.fast.kink)
        scores = babsr(coefficients, lower - self.fast.kink, upper - self.fast.kink)
        scores = torch.where(still, scores, -torch.inf)
        able = still.any(1)
        count = min(self.how.candidates, scores.shape[1])
        if count == 1:
            return scores.argmax(1), able
        best, place = scores.topk(count, 1)
        trials = [batch.split(place[:, one]) for one in range(count)]
        bounds = self.fast.bound(Domains.join(trials)).amax(1).view(count, 2, len(batch))
        worse, sum_ = bounds.amin(1), bounds.clamp(max=0).sum(1)
        worth = torch.where(-torch.inf < best.T, worse + 1e-3 * sum_, -torch.inf)
        chosen = worth.argmax(0)
        return place.gather(1, chosen[:, None]).squeeze(1), able


def babsr(coefficients: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Score neurons by what the chord's intercept costs the bound: -min(A, 0) * (-l) u / (u - l)."""
    width = (upper - lower).clamp_min(torch.finfo(lower.dtype).tiny)
    return coefficients.clamp_max(0).abs() * (-lower).clamp_min(0) * upper.clamp_min(0) / width


def _size(one: Domains) -> int:
    return sum(part.numel() * part.element_size() for part in (one.slopes, one.place, one.sign, one.beta))
