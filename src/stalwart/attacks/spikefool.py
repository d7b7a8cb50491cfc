"""SpikeFool: the few flips of a binary raster that lead across a linearised decision boundary."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.attacks.base import Count
from stalwart.attacks.events_base import EventAttack, excess, first_fooling
from stalwart.attacks.oracle import Oracle
from stalwart.attacks.rounded_deepfool import to_boundary
from stalwart.core.numbers import Number, require
from stalwart.sets import ThreatSet


@dataclass(frozen=True, kw_only=True)
class SpikeFool(EventAttack):
    """SparseFool for rasters: DeepFool on the rounded iterate, a linear solver on the cube, then as few of its flips as fool.

    A round takes a raster X that does not yet fool. With DeepFool's way Σr and normal n it sets X_B = X + stretch Σr, flips
    bins of X towards sign(n) from the largest |n_i| down until nᵀ(X - X_B) changes sign, and asks whether that fools. At the
    end the flips of all rounds are replayed one by one in the order in which they were found, up to the first prefix that
    fools, or up to the threat set's number of flips: the attack has not converged there.

    Nothing is random but the model. Source: Büchel et al., Frontiers in Neuroscience 2022 (arXiv 2110.02929); SparseFool: Modas
    et al., CVPR 2019 (arXiv 1811.02248), algorithm 2.

    Attributes:
        rounds: at most so many.
        steps: DeepFool's steps in a round at most.
        overshoot: how far beyond Σr DeepFool asks for the decision.
        stretch: λ, how far beyond the boundary a round aims, at least 1: 2 for N-MNIST, 3 for gestures.
        classes: how many other classes DeepFool looks at, the likeliest; each costs a backward pass a step.
    """

    rounds: Count = 20
    steps: Count = 50
    overshoot: Number = 0.02
    stretch: Number = 2.0
    classes: Count = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rounds", "steps", "classes"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}.")
        require(self.overshoot >= 0, f"overshoot must be at least 0, got {self.overshoot}.")
        require(self.stretch >= 1, f"stretch must be at least 1, got {self.stretch}.")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Return the first prefix of each sample that fools, or else the one of largest margin loss.

        Raises:
            InputError: the threat set is not one of flipped events.
        """
        self.require_events(within)
        everyone = torch.arange(len(x), device=x.device)
        started = (excess(oracle, x, y, everyone) <= 0).nonzero()[:, 0]
        z, when = x.clone(), torch.zeros_like(x.flatten(1), dtype=torch.long)
        alive = started
        for number in range(self.rounds):
            if not len(alive):
                break
            at, label = z[alive], y[alive]
            normal, way = to_boundary(oracle, at, label, alive, self.steps, self.overshoot, self.classes)
            crossed, rank = across(at, normal, self.stretch * way)
            moved = (crossed != at).flatten(1)
            when[alive] = torch.where(moved, number * moved.shape[1] + rank, when[alive])
            z[alive] = crossed
            # A round that flips nothing would be repeated for ever.
            alive = alive[moved.any(1)]
            if len(alive):
                alive = alive[excess(oracle, z[alive], y[alive], alive) <= 0]
        x, y, flipped = x[started], y[started], (z != x).flatten(1)[started]
        last = torch.iinfo(torch.long).max
        order = when[started].masked_fill(~flipped, last).argsort(dim=1, stable=True)
        allowed = torch.as_tensor(within.select(started).radius, device=x.device).long()
        found = z.clone()
        found[started] = first_fooling(oracle, x, y, order, flipped.sum(1).minimum(allowed), started)
        return found


def across(x: Tensor, normal: Tensor, way: Tensor) -> tuple[Tensor, Tensor]:
    """Flip bins towards sign(n), from the largest |n_i| down, until nᵀ(X - X_B) changes sign, with X_B = X + way.

    This is the published loop, which moves one bin after the other within [0, 1], in one piece: a bin that is moved and is not
    the last one has gone all its way, and the last one is set to (sign n_i + 1) / 2.

    Returns:
        the rasters [B, ...], and the place of each bin in the order of flipping [B, D].
    """
    n, flat = normal.flatten(1).double(), x.flatten(1)
    before = -(n * way.flatten(1)).sum(1, keepdim=True)
    goal = torch.where(n > 0, 1.0, 0.0).to(x.dtype)
    order = n.abs().argsort(dim=1, descending=True, stable=True)
    gains = (n.abs() * (goal != flat)).gather(1, order).cumsum(1)
    # From the far side of the plane the sign never changes; at the plane any move changes it.
    reached = (gains >= -before) & (gains > 0) & (before <= 0)
    last = torch.where(reached.any(1), reached.int().argmax(1), n.shape[1] - 1)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(n.shape[1], device=x.device).expand_as(order))
    moved = (rank <= last[:, None]) & (n != 0)
    return torch.where(moved, goal, flat).reshape(x.shape), rank
