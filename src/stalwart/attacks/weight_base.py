"""The shell around every attack on weights: checks, chunks, seeds, and a last look at whether the result is in its set."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stalwart.attacks.ascent import TRUSTED_DRAWS
from stalwart.attacks.base import Cost, Gradients
from stalwart.attacks.bit_budget import BitBudget
from stalwart.attacks.guard import undisturbed
from stalwart.attacks.layout import fitting_batch
from stalwart.attacks.losses import margin
from stalwart.attacks.weight_oracle import WeightLoss, WeightOracle
from stalwart.core.checks import check_images, check_labels
from stalwart.core.errors import BrokenPromiseError, UsageError
from stalwart.core.numbers import require
from stalwart.sets import RelativeBox, ThreatSet


@dataclass(frozen=True, eq=False)
class Change:
    """The mean loss over all inputs at the clean weights, ``before``, and at the moved ones, ``after``."""

    before: float
    after: float


@dataclass(frozen=True, eq=False)
class WeightAttackResult:
    """What an attack on weights found: one set of weights for all inputs.

    Attributes:
        parameters: the moved weights by name, in the set; ``torch.func.functional_call`` takes them.
        success: whether the model with these weights misclassifies each input (a tie counts), [B] bool.
        margin: z_y - max_{j != y} z_j with these weights, [B]. On a randomised model z is the log of the softmax averaged
            over 20 fresh draws.
        loss: the loss that was climbed, before and after.
        cost: passes spent on each input.
    """

    parameters: dict[str, Tensor]
    success: Tensor
    margin: Tensor
    loss: Change
    cost: Cost


Candidate = tuple[float, dict[str, Tensor]]
"""A loss and the weights that it belongs to."""


@dataclass(frozen=True, kw_only=True)
class WeightAttack(Gradients):
    """Base record of all attacks on weights: max over theta' in the set of the mean of loss(f(x; theta'), y).

    Attributes:
        sets: the kinds of sets of weights that it works in.
        loss: "ce", the cross entropy, or "kl", the divergence KL(p(x; theta) || p(x; theta')) from the clean prediction.
    """

    sets: ClassVar[tuple[type, ...]] = (RelativeBox,)

    loss: WeightLoss = "ce"

    def search(self, oracle: WeightOracle, within: Any, seed: int) -> Iterator[Candidate]:
        """Yield candidates; the shell keeps the worst, and of a randomised model whose losses are noisy the last."""
        raise NotImplementedError

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        within: RelativeBox | BitBudget | ThreatSet,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> WeightAttackResult:
        """Attack the weights of ``model`` inside the set, so that it errs on inputs x with labels y.

        Args:
            model: maps [B, ...] to logits [B, K], deterministic or not. It is attacked in evaluation mode; parameters, mode,
                gradients, buffers and random state are as before afterwards.
            x: inputs [B, ...] in data units, all of which the same weights are to break; they pass in chunks.
            y: labels [B], integers in [0, K).
            within: the set of weights.
            seed: the same seed gives the same result.
            batch_size: inputs in a chunk; by default as many as keep activations below 16 MiB on the CPU (32 to 512), and
                1024 on a GPU. On a deterministic model it changes rounding only.

        Raises:
            InputError: NaN, wrong shapes, labels that do not exist, a model that is not one.
            UsageError: a batch size below 1, a set of inputs or another set of weights, or one that chooses no weights.
        """
        fitting = "BitBudget(8)" if BitBudget in self.sets else "RelativeBox(0.1)"
        if isinstance(within, ThreatSet):
            raise UsageError(
                f"{type(self).__name__} attacks weights, but {within.describe()} is a set of inputs; take an attack such as "
                f"'pgd', or a set of weights such as {fitting}."
            )
        if not isinstance(within, self.sets):
            raise UsageError(
                f"{type(self).__name__} does not work in {within.describe()}; give a set such as {fitting}."
            )
        check_images(x, -math.inf, math.inf, "inputs")
        check_labels(y, len(x))
        require(batch_size is None or batch_size >= 1, f"the batch size must be at least 1, got {batch_size}.")
        x, y = x.detach(), y.long().to(x.device)
        params = {name: parameter.detach() for name, parameter in within.select(model).items()}
        with undisturbed(model, seed), self.chosen_gradients(model):
            chosen = batch_size or fitting_batch(model, x)
            oracle = WeightOracle(model, params, x, y, self.loss, self.eot, chosen)
            moved = within.project(params, self._worst(oracle, within, seed))
            if not within.contains(params, moved):
                raise BrokenPromiseError(f"{type(self).__name__} left {within.describe()}; please report this.")
            scores = oracle.scores(moved)
        found = -margin(scores, y)
        return WeightAttackResult(
            moved,
            ~(found > 0),
            found,
            Change(oracle.value(oracle.before), oracle.value(scores)),
            Cost(torch.full_like(y, oracle.forwards), torch.full_like(y, oracle.backwards)),
        )

    def _worst(self, oracle: WeightOracle, within: RelativeBox | BitBudget, seed: int) -> dict[str, Tensor]:
        trusted = not oracle.randomised or self.eot >= TRUSTED_DRAWS
        worst, found = -math.inf, dict(oracle.params)
        for value, moved in self.search(oracle, within, seed):
            # A loss that is not finite is as bad as a loss can be.
            value = value if math.isfinite(value) else math.inf
            if value >= worst or not trusted:
                worst, found = value, moved
        return found
