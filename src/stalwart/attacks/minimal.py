"""What attacks share that look for the nearest adversarial point, whatever the radius of the threat set."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from stalwart.attacks.base import Attack, AttackResult, Count
from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.core.checks import check_labels
from stalwart.core.errors import InputError
from stalwart.core.numbers import require
from stalwart.sets import L0, L2, Linf, ThreatSet
from stalwart.sets.base import expand

_HAIR = (1.001,)
"""Rounding differs with the batch: a point on the very boundary may fall back when judged. A hair farther out it does not."""
_FARTHER = (1.05, 1.15, 1.3, 1.6, 2.0)
"""Of a randomised model the boundary is blurred: a point goes out until fresh draws misclassify it as well."""


@dataclass(frozen=True, kw_only=True)
class MinimalAttack(Attack):
    """Base record of attacks that minimise the size of the change, in the norm of the threat set and inside its box.

    ``x_adv`` is the nearest point found where it lies in the set, and its projection on the set elsewhere; ``distance`` tells
    how far the nearest point is, also beyond the radius. A misclassified input is its own nearest point. What a search
    has found is drawn towards the input as long as it stays misclassified, by halving the radius of the ball that it is
    projected on.

    Attributes:
        polish: halvings of that last search, one pass forward each; 0 leaves the found point as it is.
    """

    polish: Count = 10
    kinds: ClassVar[tuple[type[ThreatSet], ...]] = (Linf, L2)
    self_contained: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.polish >= 0, f"polish must be at least 0, got {self.polish}.")

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, samples: Tensor, seed: int) -> Tensor:
        """Return the nearest misclassified points found [B, ...] in the box, and any point where none was found.

        Args:
            oracle: the model.
            x: inputs [B, ...] that it classifies rightly.
            y: their labels [B].
            within: the threat set, whose norm and box count.
            samples: which samples of the oracle's batch these are [B].
            seed: the root of all randomness.
        """
        raise NotImplementedError

    def settled(self, oracle: Oracle, x: Tensor, y: Tensor, samples: Tensor) -> Tensor:
        """Return which inputs [B] count as misclassified, and so as their own nearest points, that no search is made for."""
        return misread(oracle, x, y, samples)

    def fits(self, model: nn.Module, within: ThreatSet) -> bool:
        """Tell whether the threat set is a ball in a norm that the attack knows."""
        return isinstance(within, self.kinds)

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Return the nearest points, in the set or not.

        Raises:
            InputError: a threat set in whose norm the attack does not work.
        """
        return self._nearest(oracle, x, y, within, seed)[0]

    def _attack(self, model: nn.Module, x: Tensor, y: Tensor, within: ThreatSet, seed: int, rows: int) -> AttackResult:
        oracle = Oracle(model, x, self.eot, self.average, rows=rows)
        check_labels(y, len(x), oracle.classes)
        z, found = self._nearest(oracle, x, y, within, seed)
        held = self.judge(oracle, z, y) > 0
        start = z
        for factor in _FARTHER if oracle.randomised else _HAIR:
            # Fresh draws may have let go of what the search had seen misclassified.
            slipped = held & (found | oracle.randomised)
            if not slipped.any():
                break
            pushed = (x + factor * (start - x)).clamp(within.low, within.high)
            z = torch.where(expand(slipped, x).bool(), pushed, z)  # type: ignore[union-attr]
            held = self.judge(oracle, z, y) > 0
        distance = within.distance(x, z).masked_fill(held, torch.inf)
        return dataclasses.replace(self.judged(oracle, x, y, within, z), distance=distance)

    def _nearest(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> tuple[Tensor, Tensor]:
        """Return the nearest points and whether a search took them for misclassified, [B] bool."""
        if not isinstance(within, self.kinds):
            known = ", ".join(kind.__name__ for kind in self.kinds)
            raise InputError(
                f"{type(self).__name__} looks for nearest points in {known}, not in {within.describe()}; use pgd there."
            )
        everyone = torch.arange(len(x), device=x.device)
        found = self.settled(oracle, x, y, everyone)
        nearest, left = x.clone(), everyone[~found]
        if len(left):
            part, own = x[left], within.select(left)
            z = self.search(oracle, part, y[left], own, left, seed).clamp(within.low, within.high)
            if self.polish:
                nearest[left], found[left] = drawn_in(oracle, part, z, y[left], own, left, self.polish)
            else:
                nearest[left], found[left] = z, (z != part).flatten(1).any(1)
        return nearest, found


def misread(oracle: Oracle, z: Tensor, y: Tensor, samples: Tensor) -> Tensor:
    """Return which points z the model misclassifies [B]; a tie counts, and margins are averaged over the oracle's draws."""
    return ~(oracle.averaged(oracle.logits(z, samples, oracle.eot), Goal("margin", y)) < 0)


def within_radius(within: ThreatSet, x: Tensor, z: Tensor, radius: Tensor) -> Tensor:
    """Return z put into the ball of another radius [B] in the same norm and box; for L0 the radius is rounded up."""
    return within.with_eps(radius.ceil() if isinstance(within, L0) else radius).project(x, z)


def drawn_in(
    oracle: Oracle, x: Tensor, z: Tensor, y: Tensor, within: ThreatSet, samples: Tensor, halvings: int
) -> tuple[Tensor, Tensor]:
    """Draw misclassified points z towards x until they are about to be classified rightly.

    Returns:
        the points [B, ...], misclassified wherever z was, and whether z was [B] bool.
    """
    wrong = misread(oracle, z, y, samples)
    best, high = z.clone(), within.distance(x, z)
    low = torch.zeros_like(high)
    index = wrong.nonzero()[:, 0]
    for _ in range(halvings if len(index) else 0):
        middle = (low[index] + high[index]) / 2
        part = x[index]
        closer = within_radius(within.select(index), part, best[index], middle)
        hit = misread(oracle, closer, y[index], samples[index])
        best[index[hit]] = closer[hit]
        high[index[hit]] = within.select(index[hit]).distance(part[hit], closer[hit])
        low[index[~hit]] = middle[~hit]
    return best, wrong


class Nearest:
    """The nearest misclassified point seen so far of every sample of a batch.

    Attributes:
        points: [B, ...]; x where nothing was seen.
        size: how far they are [B] float64; infinity where nothing was seen.
    """

    def __init__(self, x: Tensor) -> None:
        self.points = x.clone()
        self.size = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)

    def offer(self, z: Tensor, size: Tensor, wrong: Tensor) -> None:
        """Keep the points z [B, ...] of this size [B] that are misclassified and nearer than what is held."""
        better = wrong & (size < self.size)
        self.points[better], self.size[better] = z[better], size[better]
