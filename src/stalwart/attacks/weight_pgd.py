"""Projected gradient ascent on the weights."""

from collections.abc import Iterator
from dataclasses import dataclass

from stalwart.attacks.base import Count
from stalwart.attacks.weight_base import Candidate, WeightAttack
from stalwart.attacks.weight_oracle import WeightOracle
from stalwart.attacks.weight_steps import started, stepped
from stalwart.core.numbers import Number, require
from stalwart.core.random import generator
from stalwart.sets import RelativeBox


@dataclass(frozen=True, kw_only=True)
class WeightPGD(WeightAttack):
    """Projected gradient ascent on weights in a box relative to their size, the worst iterate kept.

        theta' <- theta + init_noise |theta| R,  R ~ N(0, 1)
        theta' <- Project(theta' + (fraction / steps) |theta| sign(grad loss(theta')))

    Source: Büchel, Faber, Muir, ICLR 2022 (arXiv 2106.05009), section 2; the authors' code does not project.

    Attributes:
        steps: gradient steps.
        init_noise: standard deviation of the start as a share of |theta|; above 0 for "kl", whose gradient is 0 at theta.
        restarts: independent starts, of which the worst end counts.
        project: put every iterate back into the set. Without it iterates may overshoot by ``init_noise``, as published;
            what is returned is put back in either case.
    """

    steps: Count = 10
    init_noise: Number = 1e-3
    restarts: Count = 1
    project: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 1, f"steps must be at least 1, got {self.steps}.")
        require(self.restarts >= 1, f"restarts must be at least 1, got {self.restarts}.")
        require(self.init_noise >= 0, f"init_noise must be at least 0, got {self.init_noise}.")
        require(
            self.init_noise > 0 or self.loss != "kl",
            "init_noise must be above 0 for the loss 'kl', whose gradient is 0 at the clean weights.",
        )

    def search(self, oracle: WeightOracle, within: RelativeBox, seed: int) -> Iterator[Candidate]:
        """Yield every iterate of every restart."""
        for restart in range(self.restarts):
            device = next(iter(oracle.params.values())).device
            source = generator(seed, "weights", restart, device=device)
            moved = started(oracle.params, within, self.init_noise, self.project, source)
            for _ in range(self.steps):
                value, slopes = oracle.gradient(moved)
                yield value, moved
                moved = stepped(oracle.params, moved, slopes, within, self.steps, self.project)
            yield oracle.loss(moved), moved
