"""Progressive search for the stored bits whose flips do most harm."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stalwart.attacks.base import Count
from stalwart.attacks.bit_budget import BitBudget
from stalwart.attacks.weight_base import Candidate, WeightAttack
from stalwart.attacks.weight_bits import best_of_all, count_bits, decoded, flip, gathered, promising
from stalwart.attacks.weight_oracle import WeightOracle
from stalwart.core.numbers import require


@dataclass(frozen=True, kw_only=True)
class WeightBitFlip(WeightAttack):
    """Flips bits one after the other, each time those of the tensor where they raise the loss most.

    In each round a gradient says what each bit promises, slope · change. The best bits of each of the most promising tensors
    are flipped on trial, the loss is evaluated, and those of the worst trial stay flipped, until the budget is spent or no bit
    promises harm. A bit is flipped once at most.
    Source: Rakin, He, Fan, "Bit-flip attack: crushing neural network with progressive bit search", ICCV 2019
    (arXiv 1903.12269); with ``at_once`` above 1 also Stutz et al., 2021 (arXiv 2104.08323), section 3.3.

    Attributes:
        at_once: bits flipped in each round; with more of them than one, the best over all tensors together are tried too.
        tries: tensors that are tried in each round; as published, all.
    """

    sets: ClassVar[tuple[type, ...]] = (BitBudget,)

    at_once: Count = 1
    tries: Count = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.at_once >= 1, f"at_once must be at least 1 bit, got {self.at_once}.")
        require(self.tries >= 1, f"tries must be at least 1 tensor, got {self.tries}.")
        require(
            self.loss == "ce",
            "weight-bitflip climbs the loss 'ce': it starts at the clean weights, where 'kl' is flat.",
        )

    def search(self, oracle: WeightOracle, within: BitBudget, seed: int) -> Iterator[Candidate]:
        """Yield the quantised weights, and what is left of them after each round."""
        clean = stored = within.codes(oracle.params)
        left = within.flips
        moved = decoded(stored, oracle.params)
        yield oracle.loss(moved), moved
        while left:
            _, slopes = oracle.gradient(moved)
            worst = -math.inf
            chosen: dict[str, Tensor] = {}
            found = promising(stored, clean, slopes, within.bits, min(self.at_once, left))
            order = sorted(found, key=lambda name: -float(found[name][0].sum()))[: self.tries]
            trials = [{name: gathered(found[name][1], within.bits, stored[name].code)} for name in order]
            if self.at_once > 1 and len(found) > 1:
                trials.append(best_of_all(found, stored, within.bits, min(self.at_once, left)))
            for masks in trials:
                value = oracle.loss(decoded(flip(stored, masks), oracle.params))
                value = value if math.isfinite(value) else math.inf
                if value > worst:
                    worst, chosen = value, masks
            if not chosen:
                return
            stored = flip(stored, chosen)
            left -= sum(count_bits(mask, within.bits) for mask in chosen.values())
            moved = decoded(stored, oracle.params)
            yield worst, moved
