"""The fast adaptive boundary attack: the nearest misclassified point, by steps to linearised decision boundaries."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from stalwart.attacks.base import Attack, AttackResult, Count
from stalwart.attacks.hyperplanes import Norm, lengths, step_to_hyperplane
from stalwart.attacks.losses import Goal
from stalwart.attacks.minimal import MinimalAttack
from stalwart.attacks.oracle import Oracle
from stalwart.attacks.restarts import likely_classes, with_siblings
from stalwart.core.numbers import Number, require
from stalwart.core.random import generator
from stalwart.sets import L1, L2, Linf, ThreatSet
from stalwart.sets.base import expand, radii

_SEARCH = 2


@dataclass(frozen=True, kw_only=True)
class FAB(MinimalAttack):
    """FAB for linf, l2 and l1: minimise the change under which a sample is misclassified.

    Around z_k the decision boundary towards a class t is taken as the hyperplane f_t - f_y = 0, linearised. With d_k the
    shortest step from z_k to it inside the box, e_k that from x, a = |d_k| / (|d_k| + |e_k|) and α = min(a, alpha):

        z_{k+1} <- clip((1 - α) (z_k + η d_k) + α (x + η e_k));  where misclassified: z_{k+1} <- x + β (z_{k+1} - x)

    Untargeted, t is the class whose boundary is nearest in the linearisation, at K - 1 backward passes a step; targeted, one
    search is made for each of the ``targets`` most likely classes, at one backward pass a step, all side by side. A point of
    another class counts whatever the target. At the end a search on the segment to x shortens what was found.

    The first run starts at x, others at a random point within half of min(eps, distance so far). All inputs of a randomised
    model are searched from: that a few draws misclassify one proves nothing.
    Source: Croce and Hein, ICML 2020 (arXiv 1907.02044), algorithm 1; targets as in their AutoAttack (arXiv 2003.01690).

    Attributes:
        steps: linearisations of a run, at least 1.
        restarts: runs, at least 1.
        targeted: one search for each of the most likely wrong classes, rather than one towards the nearest boundary.
        targets: how many classes the targeted attack aims at; at most K - 1 are.
        alpha: largest weight α of the step from the clean input, in [0, 1].
        eta: overshooting η, at least 1.
        beta: backward step β, in (0, 1).
        early: a sample is done as soon as its distance is at most eps, as in AutoAttack, and the result tells no distances.
        polish: as in :class:`MinimalAttack`; 0 by default, since FAB has a last search of its own.
    """

    steps: Count = 100
    restarts: Count = 1
    targeted: bool = False
    targets: Count = 9
    alpha: Number = 0.1
    eta: Number = 1.05
    beta: Number = 0.9
    early: bool = False
    polish: Count = 0
    kinds = (Linf, L2, L1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "restarts", "targets"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}.")
        require(0 <= self.alpha <= 1, f"alpha must lie in [0, 1], got {self.alpha}.")
        require(self.eta >= 1, f"eta must be at least 1, got {self.eta}.")
        require(0 < self.beta < 1, f"beta must lie in (0, 1), got {self.beta}.")

    def _attack(self, model: nn.Module, x: Tensor, y: Tensor, within: ThreatSet, seed: int, rows: int) -> AttackResult:
        shell = Attack if self.early else MinimalAttack
        return shell._attack(self, model, x, y, within, seed, rows)

    def settled(self, oracle: Oracle, x: Tensor, y: Tensor, samples: Tensor) -> Tensor:
        """Return which inputs [B] are misclassified; none of a randomised model, of which a few draws prove nothing."""
        found = super().settled(oracle, x, y, samples)
        return torch.zeros_like(found) if oracle.randomised else found

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, samples: Tensor, seed: int) -> Tensor:
        """Return the nearest misclassified points of all restarts."""
        enough = radii(within.radius, x).to(x.dtype) if self.early and oracle.decisive else x.new_zeros(len(x))
        found, distance = x.clone(), torch.full_like(enough, torch.inf)
        rows = min(self.targets, oracle.classes - 1) if self.targeted else 1
        order = likely_classes(oracle, x, y, samples)[:, :rows] if self.targeted else None
        for restart in range(self.restarts):
            start = x
            if restart:
                reach = 0.5 * radii(within.radius, x).minimum(distance.double())
                start = within.with_eps(reach).sample(x, generator(seed, "start", restart, device=x.device))
            alive = (distance > enough).nonzero()[:, 0]
            for part in alive.split(max(1, oracle.rows // rows)):
                at = part.repeat_interleave(rows)
                aim = None if order is None else order[part].flatten()
                goal = Goal("margin" if aim is None else "targeted-margin", y[at], aim)
                best, short = self._descend(oracle, goal, x[at], start[at], within, samples[at], enough[at])
                least, place = short.view(-1, rows).min(1)
                better = least < distance[part]
                row = torch.arange(len(part), device=x.device) * rows + place
                found[part[better]], distance[part[better]] = best[row[better]], least[better]
        return found

    def _descend(
        self, oracle: Oracle, goal: Goal, x: Tensor, z: Tensor, within: ThreatSet, samples: Tensor, enough: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest misclassified point of each row and its distance, infinite where there is none."""
        norm = cast(Norm, within.name)
        found, distance = x.clone(), torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        index = torch.arange(len(x), device=x.device)
        own, centre = samples, x
        for _ in range(self.steps):
            slope, gap = self._boundary(oracle, goal, z, own, norm)
            z = self._ahead(norm, centre, z, slope, gap, within)
            wrong = goal.broken(oracle.logits(z, own, oracle.eot).mean(0)).nonzero()[:, 0]
            if not len(wrong):
                continue
            delta = z[wrong] - centre[wrong]
            length = lengths(norm, delta.flatten(1))
            better = length < distance[index[wrong]]
            at = index[wrong[better]]
            found[at], distance[at] = z[wrong[better]], length[better]
            z[wrong] = (centre[wrong] + self.beta * delta).clamp_(within.low, within.high)
            done = distance[index] <= enough[index]
            if done.any():
                alive = (~with_siblings(done, own)).nonzero()[:, 0]
                if not len(alive):
                    return found, distance
                index, own, centre, z, goal = index[alive], own[alive], centre[alive], z[alive], goal.select(alive)
        self._shorten(oracle, goal, x, found, distance, index, samples, within)
        return found, distance

    def _boundary(self, oracle: Oracle, goal: Goal, z: Tensor, samples: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        """Return the slope [B, n] of f_t - f_y at z and the gap to the boundary, f_y - f_t [B]."""
        if goal.target is not None:
            value, _, gradient = oracle.gradient(z, goal, samples)
            return gradient.flatten(1), -value
        # All K classes take part, the own one with an infinite distance: which class comes r-th differs from row to row.
        classes = [torch.full_like(goal.y, k) for k in range(oracle.classes)]
        values, _, gradients = oracle.gradients(
            z, [Goal("targeted-margin", goal.y, target) for target in classes], samples
        )
        slope, gap, least = torch.zeros_like(z.flatten(1)), values[0], torch.full_like(values[0], torch.inf)
        for k, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
            flat = gradient.flatten(1)
            dual = lengths({"linf": "l1", "l2": "l2", "l1": "linf"}[norm], flat)  # type: ignore[arg-type]
            near = torch.where(goal.y == k, torch.inf, value.abs() / (dual + 1e-12))
            nearer = near < least
            slope, gap = torch.where(nearer[:, None], flat, slope), torch.where(nearer, -value, gap)
            least = torch.where(nearer, near, least)
        return slope, gap

    def _ahead(self, norm: Norm, x: Tensor, z: Tensor, slope: Tensor, gap: Tensor, within: ThreatSet) -> Tensor:
        flat, centre = z.flatten(1), x.flatten(1)
        away = gap + (slope * (flat - centre)).sum(1)
        here = step_to_hyperplane(norm, flat, slope, gap, within.low, within.high)
        there = step_to_hyperplane(norm, centre, slope, away, within.low, within.high)
        near, far = lengths(norm, here).clamp_min(1e-8), lengths(norm, there).clamp_min(1e-8)
        share = (near / (near + far)).clamp_max(self.alpha)[:, None]
        ahead = (flat + self.eta * here).lerp(centre + self.eta * there, share)
        return ahead.clamp_(within.low, within.high).reshape(z.shape)

    def _shorten(
        self,
        oracle: Oracle,
        goal: Goal,
        x: Tensor,
        found: Tensor,
        distance: Tensor,
        index: Tensor,
        samples: Tensor,
        within: ThreatSet,
    ) -> None:
        """Move each point found towards x, in place: twice to where the margin, taken as linear between two points, is zero."""
        has = (distance[index] < torch.inf).nonzero()[:, 0]
        if not len(has):
            return
        at, goal = index[has], goal.select(has)
        centre, delta = x[at], found[at] - x[at]
        rule = Goal("margin", goal.y)

        def margins(share: Tensor) -> tuple[Tensor, Tensor]:
            z = (centre + expand(share, centre) * delta).clamp_(within.low, within.high)
            return z, rule(oracle.logits(z, samples[at], oracle.eot).mean(0))

        outer, inner = torch.ones_like(distance[at]), torch.full_like(distance[at], self.beta)
        (_, beyond), (z, before) = margins(outer), margins(inner)
        for _ in range(_SEARCH):
            wrong = before >= 0
            found[at[wrong]] = z[wrong]
            outer, beyond = torch.where(wrong, inner, outer), torch.where(wrong, before, beyond)
            share = (beyond / (beyond - before)).nan_to_num(0.5).clamp(0, 1)
            # A little short of the zero, where a linear margin would be a tie or, by rounding, right.
            inner = torch.where(wrong, self.beta * inner, outer + 0.98 * share * (inner - outer))
            z, before = margins(inner)
        wrong = before >= 0
        found[at[wrong]] = z[wrong]
        distance[at] = lengths(cast(Norm, within.name), (found[at] - centre).flatten(1))
