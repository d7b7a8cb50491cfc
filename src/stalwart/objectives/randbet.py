"""Training under bit errors in the memory of the weights, random or adversarial."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from stalwart.attacks.replaced import run_with
from stalwart.attacks.weight_bits import best_of_all, decoded, flip, promising
from stalwart.core.numbers import Number, require
from stalwart.hardware import BitFlips
from stalwart.hardware.codes import unsigned
from stalwart.hardware.names import chosen_parameters
from stalwart.objectives.base import Moment
from stalwart.objectives.moved import AtMovedWeights, Slopes, aside_of, shifted, slopes_of


@dataclass(frozen=True, kw_only=True)
class RandBET(AtMovedWeights):
    """The mean of the base loss at quantised weights and at the same weights with flipped bits.

        loss = (base(q(w)) + base(flip(q(w)))) / 2,   gradients pass q and flip as if they were not there

    The codes are those of :class:`stalwart.hardware.BitFlips`. Flips are drawn afresh for each batch, or, with ``flips``, are
    those that promise most harm on it (AdvBET). As long as the base loss of a batch at the quantised weights is at ``start``
    or above, it is all of the loss. What reaches a weight is clipped, the gradient of both terms together. Batch
    normalisation's statistics are those without flips. The method goes with ``training.clip_weights``.
    Source: Stutz et al., MLSys 2021 (arXiv 2006.13977), section 4.3 and algorithm 1; adversarial: Stutz et al., 2021 (arXiv
    2104.08323), section 4.3.

    Attributes:
        bits: of each code, 2 to 16.
        rate: share of the bits that flip.
        flips: how many bits flip in all, adversarially; 0 for random flips at ``rate``.
        steps: gradients that adversarial flips are found by; each step flips an equal share of them.
        start: base loss below which bits flip; 1.75 for ten classes.
        clip: largest size of an element of the gradient; None for any. Data-parallel processes clip their own.
        only: glob patterns of the parameters that are stored so, as devices take them; weight matrices and their biases
            without one.
    """

    only: str | tuple[str, ...] = ()
    bits: int = 8
    rate: Number = 0.01
    flips: int = 0
    steps: int = 1
    start: Number = 1.75
    clip: Number | None = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        require(2 <= self.bits <= 16, f"a stored weight has 2 to 16 bits, got {self.bits}.")
        BitFlips(self.rate, self.bits)  # its own checks
        require(self.flips >= 0, f"flips must be at least 0, got {self.flips}.")
        require(self.steps >= 1, f"steps must be at least 1, got {self.steps}.")
        require(
            self.flips == 0 or self.steps <= self.flips,
            f"{self.steps} steps cannot share {self.flips} flips; give at most one step a flip.",
        )
        require(self.start > 0, f"start must be positive, got {self.start}.")
        require(self.clip is None or self.clip > 0, f"clip must be positive, got {self.clip}.")

    def chosen(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters whose bits flip, by name."""
        return chosen_parameters(model, self.only, biases=True)

    def move(
        self, weights: Mapping[str, Tensor], slopes: Slopes, generator: Callable[[str], torch.Generator]
    ) -> dict[str, Tensor]:
        """Return the quantised weights with flipped bits."""
        clean = stored = {name: unsigned(weight, self.bits) for name, weight in weights.items()}
        if not self.flips:
            device, source = BitFlips(self.rate, self.bits), generator("bit-flips")
            return decoded(flip(clean, {name: device.mask(w, source) for name, w in weights.items()}), weights)
        for step in range(self.steps):
            count = self.flips * (step + 1) // self.steps - self.flips * step // self.steps
            found = promising(stored, clean, slopes(decoded(stored, weights)), self.bits, count)
            stored = flip(stored, best_of_all(found, stored, self.bits, count))
        return decoded(stored, weights)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the mean of both losses, and the logits without flips."""
        x_adv = self.craft(model, x, y, moment)
        weights = self.chosen(model)
        still = {name: weight.detach() for name, weight in weights.items()}
        gates = {name: self._gate(weight) for name, weight in weights.items()}
        stored = decoded({name: unsigned(weight, self.bits) for name, weight in still.items()}, still)
        ends = shifted(gates, stored)
        loss, logits = self.combine(lambda z: run_with(model, ends, z), x, x_adv, y)
        if _mean(loss) < self.start:
            aside = aside_of(self, model, x, x_adv, y)
            moved = self.move(still, lambda at: slopes_of(aside, at), lambda name: moment.generator(x, name))
            loss = (loss + aside(shifted(gates, moved))) / 2
        return loss + self.penalty(model), logits

    def _gate(self, weight: Tensor) -> Tensor:
        """Return the weight, behind a gate that clips what comes back through it from both losses together."""
        gate, most = weight.view_as(weight), self.clip
        if most is not None and gate.requires_grad:
            gate.register_hook(lambda gradient: gradient.clamp(-most, most))
        return gate


def _mean(loss: Tensor) -> float:
    """Return the mean over data-parallel processes, so that all decide alike."""
    value = loss.detach().clone()
    if distributed.is_initialized():
        distributed.all_reduce(value)
        value /= distributed.get_world_size()
    return float(value)
