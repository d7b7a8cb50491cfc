"""Projected gradient descent for binary rasters: the iterate is continuous, the network only ever sees events."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.attacks.base import Count
from stalwart.attacks.events_base import EventAttack, excess, first_fooling
from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.core.numbers import Number, require
from stalwart.core.random import generator, uniform
from stalwart.sets import L2, ThreatSet


@dataclass(frozen=True, kw_only=True)
class BinaryPGD(EventAttack):
    """PGD on the cross entropy with gradients at stochastically rounded points, then the farthest bins flipped one by one.

        P <- Project(P + step g / ‖g‖),  g = ∇ loss at a raster that holds an event with probability P (straight through)

    P lies in [0, 1] and in an l2 ball around x. At the end the bins are flipped from the largest |P - x| down, up to the
    first prefix that fools or to the threat set's number of flips.
    Source: Büchel et al., Frontiers in Neuroscience 2022 (arXiv 2110.02929), its first comparison.

    Attributes:
        steps: gradient steps.
        radius: of the l2 ball, in events.
        step: length of a step, in events.
        start: the starting point is up to so far from x, uniform in each bin.
    """

    steps: Count = 50
    radius: Number = 1.5
    step: Number = 0.3
    start: Number = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, f"steps must be at least 1, got {self.steps}.")
        for name in ("radius", "step"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}.")
        require(0 <= self.start <= 1, f"start must lie in [0, 1], got {self.start}.")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Return the first prefix of each sample that fools, or else the one of largest margin loss.

        Raises:
            InputError: the threat set is not one of flipped events.
        """
        self.require_events(within)
        source, ball, found = generator(seed, "rounding", device=x.device), L2(self.radius), x.clone()
        everyone = torch.arange(len(x), device=x.device)
        samples = (excess(oracle, x, y, everyone) <= 0).nonzero()[:, 0]
        if not len(samples):
            return found
        allowed = torch.as_tensor(within.select(samples).radius, device=x.device).long()
        x, goal = x[samples], Goal("ce", y[samples])
        p = ball.project(x, x + (1 - 2 * x) * self.start * uniform(x.shape, source, x))
        for _ in range(self.steps):
            p = ball.project(x, p + self.step * ball.steepest(self.slope(oracle, p, goal, samples, source)))
        moved = (p - x).abs().flatten(1)
        order = moved.argsort(dim=1, descending=True, stable=True)
        found[samples] = first_fooling(oracle, x, goal.y, order, (moved > 0).sum(1).minimum(allowed), samples)
        return found

    def slope(self, oracle: Oracle, p: Tensor, goal: Goal, samples: Tensor, source: torch.Generator) -> Tensor:
        """Return the direction to move the probabilities p [B, ...] in: the gradient at one raster drawn from them."""
        drawn = (uniform(p.shape, source, p) < p).to(p.dtype)
        return oracle.gradient(drawn, goal, samples)[2]
