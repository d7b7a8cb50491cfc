"""The few-pixel attack: differential evolution over which pixels to change, and to what."""

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from stalwart.attacks.base import Attack, Count
from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.core.errors import InputError
from stalwart.core.numbers import Number, require
from stalwart.core.random import derive
from stalwart.sets import L0, ThreatSet
from stalwart.sets.base import radii


@dataclass(frozen=True, kw_only=True)
class FewPixel(Attack):
    """Differential evolution in an l0 set: a candidate is a list of pixels, each a place and the values of its channels.

        child = a + mutation (b - c)  for three members a, b, c of the population; it replaces a parent of no larger loss

    A population of one sample passes the model as one batch; a deterministic target's sample is done once it is
    misclassified. No gradient is used. Inputs other than images [B, C, H, W] have coordinates in the place of pixels.
    Source: Su, Vargas, Sakurai, IEEE Trans. Evol. Comp. 2019 (arXiv 1710.08864), section III; evolution by scipy.

    Attributes:
        generations: at least 1.
        population: candidates, at least 5; each is one query a generation.
        mutation: F in (0, 2).
        recombination: the share of a child's entries that are mutated, in (0, 1]; all as published.
        loss: what is climbed, "margin" or "ce".
    """

    generations: Count = 100
    population: Count = 400
    mutation: Number = 0.5
    recombination: Number = 1.0
    loss: Literal["margin", "ce"] = "margin"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.generations >= 1, f"generations must be at least 1, got {self.generations}.")
        require(self.population >= 5, f"population must be at least 5, got {self.population}.")
        require(0 < self.mutation < 2, f"mutation must lie in (0, 2), got {self.mutation}.")
        require(0 < self.recombination <= 1, f"recombination must lie in (0, 1], got {self.recombination}.")

    def fits(self, model: nn.Module, within: ThreatSet) -> bool:
        """Tell whether the threat set counts pixels."""
        return isinstance(within, L0)

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Return the best candidate of each sample's evolution.

        Raises:
            InputError: the threat set is no L0 set.
        """
        if not isinstance(within, L0):
            raise InputError(
                f"the few-pixel attack works in L0 sets, not in {within.describe()}; use pgd or square there."
            )
        goal, everyone, found = Goal(self.loss, y), torch.arange(len(x), device=x.device), x.clone()
        clean = oracle.logits(x, everyone, oracle.eot)
        done = goal.broken(clean[-1]) & oracle.decisive
        pixels = radii(within.radius, x).long().tolist()
        for one in (~done).nonzero()[:, 0].tolist():
            if pixels[one]:
                index = everyone[one : one + 1]
                found[one] = self._evolve(
                    oracle, goal.select(index), x[one], pixels[one], within, index, derive(seed, one)
                )
        return found

    def _evolve(
        self, oracle: Oracle, goal: Goal, x: Tensor, pixels: int, within: ThreatSet, index: Tensor, seed: int
    ) -> Tensor:
        """Return the best candidate for one input x [...]."""
        from scipy.optimize import differential_evolution  # takes longer to import than all the rest

        channels, places = (x.shape[0], x[0].numel()) if x.dim() == 3 else (1, x.numel())
        pixels = min(pixels, places)
        source = np.random.default_rng(seed)
        spans = [(0.0, float(places)), *[(within.low, within.high)] * channels] * pixels
        lower, upper = np.array(spans).T
        start = lower + (upper - lower) * source.random((self.population, len(spans)))
        best, value, broken = x, -torch.inf, False

        def painted(genes: np.ndarray) -> Tensor:
            table = torch.from_numpy(np.ascontiguousarray(genes.T)).to(x).reshape(-1, pixels, 1 + channels)
            place = table[..., 0].long().clamp(0, places - 1)
            out = x.reshape(1, channels, places).repeat(len(table), 1, 1)
            out.scatter_(2, place[:, None].expand(-1, channels, -1), table[..., 1:].transpose(1, 2))
            return out.reshape(-1, *x.shape).clamp(within.low, within.high)

        def fitness(genes: np.ndarray) -> np.ndarray:
            nonlocal best, value, broken
            z = painted(genes.reshape(len(spans), -1))
            logits = oracle.logits(z, index.expand(len(z)), oracle.eot)
            many = Goal(goal.loss, goal.y.expand(len(z)))
            found = oracle.averaged(logits, many)
            top = int(found.nan_to_num(nan=torch.inf).argmax())
            if float(found[top]) > value or bool(found[top].isnan()):
                best, value = z[top], float(found[top])
                broken = oracle.decisive and bool(many.broken(logits[-1])[top])
            return -found.double().cpu().numpy()

        options: dict[str, Any] = {
            "rng" if "rng" in inspect.signature(differential_evolution).parameters else "seed": source
        }
        fitness_start = fitness(start.T)
        if not broken and np.isfinite(fitness_start).all():
            differential_evolution(
                fitness, spans, strategy="rand1bin", maxiter=self.generations, init=start, mutation=self.mutation,
                recombination=self.recombination, tol=0.0, polish=False, updating="deferred", vectorized=True,
                callback=lambda point, convergence: broken, **options,
            )  # fmt: skip
        return best
