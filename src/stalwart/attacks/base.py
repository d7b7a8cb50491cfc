"""The shell around every attack: checks, chunks, seeds, counts, and a last look at whether the result keeps its promise."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pydantic
import torch
from torch import Tensor, nn

from stalwart.attacks.bit_budget import BitBudget
from stalwart.attacks.fast_gradients import FastGradients
from stalwart.attacks.guard import undisturbed
from stalwart.attacks.layout import fitting_batch
from stalwart.attacks.losses import margin
from stalwart.attacks.oracle import Average, Oracle
from stalwart.attacks.team import at_work, even_parts
from stalwart.core.checks import check_images, check_labels
from stalwart.core.crew import side_by_side
from stalwart.core.errors import BrokenPromiseError, InputError, UsageError
from stalwart.core.numbers import require
from stalwart.core.random import derive
from stalwart.sets import L1, L2, Linf, RelativeBox, ThreatSet
from stalwart.spiking import find_surrogate, gradients
from stalwart.spiking.modes import BACKWARDS
from stalwart.stochastic import passes, scores
from stalwart.stochastic.rules import Rule

JUDGE_DRAWS = 20
"""Fresh draws behind ``success`` and ``margin`` of a randomised model."""

Count = Annotated[int, pydantic.Field(strict=True)]


@dataclass(frozen=True, eq=False)
class Cost:
    """Passes through the model spent on each sample: ``forwards`` and ``backwards``, [B] integers."""

    forwards: Tensor
    backwards: Tensor


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack found.

    Attributes:
        x_adv: points of the threat set, [B, ...].
        success: whether the model misclassifies x_adv (a tie counts, but not in attacks on events), [B] bool.
        margin: z_y - max_{j != y} z_j at x_adv, [B]; negative where the attack succeeded. On a randomised model z is the
            log of the softmax averaged over 20 fresh draws, so that success is not a matter of one lucky draw.
        cost: passes spent on each sample.
        distance: of attacks that look for the nearest adversarial point (:mod:`stalwart.attacks.minimal`) the size of the least
            change found that the model misclassifies, in the norm of the threat set and also beyond its radius, [B] float64:
            0 where the clean input is misclassified, infinity where none was found. None for all other attacks.
    """

    x_adv: Tensor
    success: Tensor
    margin: Tensor
    cost: Cost
    distance: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """What attacks on inputs and on weights have in common: how gradients of randomised and of spiking models are taken.

    Attributes:
        eot: noise draws averaged in each gradient (expectation over transformation); works with every attack.
        surrogate: on a spiking model, the derivative of a spike that gradients take instead of the model's own: a name of
            :data:`stalwart.spiking.SURROGATES`, or the name with options.
        backward: on a spiking model, how gradients pass neurons, see :mod:`stalwart.spiking.modes`.
    """

    eot: Count = 1
    surrogate: str | Mapping[str, Any] | None = None
    backward: str | None = None

    def __post_init__(self) -> None:
        require(self.eot >= 1, f"eot must be at least 1 noise draw, got {self.eot}.")
        if self.surrogate is not None:
            find_surrogate(self.surrogate)
        known = ", ".join(BACKWARDS)
        require(self.backward in (None, *BACKWARDS), f"unknown backward mode '{self.backward}'; known: {known}.")

    def chosen_gradients(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Return the context in which gradients pass the model's neurons as this attack wants.

        Raises:
            InputError: it wants something, but the model has no neurons.
        """
        if self.surrogate is None and self.backward is None:
            return contextlib.nullcontext()
        return gradients(model, self.surrogate, self.backward)


@dataclass(frozen=True, kw_only=True)
class Attack(Gradients):
    """Base record of all attacks on inputs.

    Attributes:
        average: what is averaged over the draws: the "loss", the "logits" or the "softmax".
    """

    average: Average = "loss"
    ties: ClassVar[bool] = True
    """Whether a tie with the label's logit is a success."""
    self_contained: ClassVar[bool] = False
    """Whether ``run`` uses nothing but the oracle and generators of its own, so that chunks may run in several threads."""

    def fits(self, model: nn.Module, within: ThreatSet) -> bool:
        """Tell whether the attack is made for this kind of model and threat set; suites leave out one that is not."""
        return True

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Return candidates [B, ...] for clean inputs x [B, ...]; the shell projects, checks and judges them."""
        raise NotImplementedError

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        within: ThreatSet | RelativeBox | BitBudget,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> AttackResult:
        """Attack ``model`` on inputs x with labels y inside the threat set.

        Args:
            model: maps [B, ...] to logits [B, K], deterministic or not. It is attacked in evaluation mode; its mode,
                gradients, buffers and random state are as before afterwards.
            x: inputs [B, ...] in data units, within ``[within.low, within.high]``.
            y: labels [B], integers in [0, K).
            within: the threat set, with one radius or one per sample.
            seed: the same seed (and batch size) gives the same result, whatever the number of threads.
            batch_size: samples attacked together; by default as many as keep activations below 16 MiB on the CPU
                (32 to 512), and 1024 on a GPU. Plain stacks of layers on the CPU get an even number of parts of at most
                that many, for as many threads to take.

        Raises:
            InputError: NaN, values out of range, wrong shapes, labels that do not exist, a model that is not one.
            UsageError: a batch size below 1, or a set of weights instead of inputs.
        """
        if isinstance(within, RelativeBox | BitBudget):
            raise UsageError(
                f"{type(self).__name__} attacks inputs, but {within.describe()} is a set of weights; take an attack such as "
                "'weight-pgd', or a set of inputs such as Linf(eps)."
            )
        check_images(x, within.low, within.high)
        check_labels(y, len(x))
        require(batch_size is None or batch_size >= 1, f"the batch size must be at least 1, got {batch_size}.")
        x, y = x.detach().clamp(within.low, within.high), y.long().to(x.device)
        within.bounds(x)  # refuses a number of radii that is not the batch size
        with undisturbed(model, seed), self.chosen_gradients(model), at_work(model, x[:1]) as shares:
            chosen = batch_size or fitting_batch(model, x)
            threaded = shares and self.self_contained
            sizes = even_parts(len(x), chosen) if threaded and batch_size is None else chosen

            def attack(chunk: tuple[int, Tensor]) -> AttackResult:
                number, index = chunk
                own = within.select(index)
                # The caller's mode, which threads do not inherit, does not matter: what needs no gradient says so itself.
                with torch.enable_grad():
                    return self._attack(model, x[index], y[index], own, derive(seed, "chunk", number), chosen)

            chunks = list(enumerate(torch.arange(len(x), device=x.device).split(sizes)))
            parts = side_by_side(attack, chunks) if threaded else [attack(chunk) for chunk in chunks]
        if batch_size is None:
            parts[0].cost.forwards[:1] += 1  # the pass that measured the activations
        distances = [part.distance for part in parts if part.distance is not None]
        return AttackResult(
            torch.cat([part.x_adv for part in parts]),
            torch.cat([part.success for part in parts]),
            torch.cat([part.margin for part in parts]),
            Cost(
                torch.cat([part.cost.forwards for part in parts]),
                torch.cat([part.cost.backwards for part in parts]),
            ),
            torch.cat(distances) if distances else None,
        )

    def _attack(self, model: nn.Module, x: Tensor, y: Tensor, within: ThreatSet, seed: int, rows: int) -> AttackResult:
        oracle = Oracle(model, x, self.eot, self.average, rows=rows)
        check_labels(y, len(x), oracle.classes)
        return self.judged(oracle, x, y, within, self.run(oracle, x, y, within, seed))

    def judged(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, candidates: Tensor) -> AttackResult:
        """Put candidates [B, ...] into the set, see that they are in it, and return what the model makes of them.

        Raises:
            BrokenPromiseError: a point outside the set.
        """
        x_adv = within.project(x, candidates).contiguous()
        inside = within.contains(x, x_adv)
        if not inside.all():
            bad = int((~inside).nonzero()[0])
            raise BrokenPromiseError(
                f"{type(self).__name__} left {within.describe()} in sample {bad}; please report this."
            )
        found = self.judge(oracle, x_adv, y)
        success = ~(found > 0) if self.ties else found < 0
        return AttackResult(x_adv, success, found, Cost(oracle.forwards, oracle.backwards))

    def judge(self, oracle: Oracle, z: Tensor, y: Tensor) -> Tensor:
        """Return the margin z_y - max_{j != y} z_j [B] at any points, by the mean softmax of a randomised model."""
        draws = JUDGE_DRAWS if oracle.randomised else 1
        rule: Rule = "mean-softmax" if oracle.randomised else "single"
        with torch.no_grad(), FastGradients():
            found = -margin(scores(oracle.model, oracle.arrange(z), rule, draws), y)
        oracle.forwards += passes(oracle.model, draws)
        return found


@dataclass(frozen=True, kw_only=True)
class BallAttack(Attack):
    """Base record of attacks that work in linf, l2 and l1 balls alone."""

    def fits(self, model: nn.Module, within: ThreatSet) -> bool:
        """Tell whether the threat set is an linf, l2 or l1 ball."""
        return isinstance(within, Linf | L2 | L1)

    def require_ball(self, within: ThreatSet) -> None:
        """Refuse other sets.

        Raises:
            InputError: the threat set is not an linf, l2 or l1 ball.
        """
        if not isinstance(within, Linf | L2 | L1):
            name = type(self).__name__.lower()
            raise InputError(f"{name} works in linf, l2 and l1 balls, not in {within.describe()}; use pgd there.")
