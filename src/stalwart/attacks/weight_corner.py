"""Random corners of the set of weights: what an attack with gradients has to beat."""

from collections.abc import Iterator
from dataclasses import dataclass

from stalwart.attacks.base import Count
from stalwart.attacks.weight_base import Candidate, WeightAttack
from stalwart.attacks.weight_oracle import WeightOracle
from stalwart.core.numbers import require
from stalwart.core.random import generator
from stalwart.sets import RelativeBox


@dataclass(frozen=True, kw_only=True)
class WeightCorner(WeightAttack):
    """The worst of several random corners of a box around the weights, theta' = theta ± fraction |theta|; no gradients.

    Attributes:
        trials: how many corners.
    """

    trials: Count = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.trials >= 1, f"trials must be at least 1, got {self.trials}.")

    def search(self, oracle: WeightOracle, within: RelativeBox, seed: int) -> Iterator[Candidate]:
        """Yield every corner."""
        device = next(iter(oracle.params.values())).device
        for trial in range(self.trials):
            moved = within.corner(oracle.params, generator(seed, "corner", trial, device=device))
            yield oracle.loss(moved), moved
