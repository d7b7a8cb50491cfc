"""What an attack may ask of a model: logits and input gradients, averaged over noise draws and counted per sample."""

import contextlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from stalwart.attacks.fast_gradients import FastGradients
from stalwart.attacks.layout import prefers_channels_last
from stalwart.attacks.losses import Goal
from stalwart.attacks.team import team
from stalwart.core.checks import check_logits
from stalwart.core.crew import go_on
from stalwart.core.errors import InputError
from stalwart.core.layout import channels_last
from stalwart.stochastic import draw_logits, is_random, passes

Average = Literal["loss", "logits", "softmax"]


class Oracle:
    """Access to one model for one batch.

    Expectation over transformation (Athalye et al., ICML 2018, arXiv 1802.00420) lives here, so every attack has it:
    a gradient is that of the loss averaged over ``eot`` fresh draws ("loss"), or of the loss of the averaged logits or
    softmax. A model with ``cheap_draws`` pays for its backbone once, whatever ``eot`` is.

    Attributes:
        forwards, backwards: passes spent on each sample of the batch, [B].
        randomised: whether two calls on the same input differ, so that no single success is to be believed.
        decisive: whether a sample is done once this model misclassifies it. Not so on the source of a transfer attack,
            where it would stop right behind the source's decision boundary, nor on a randomised model.
        rows: how many inputs one pass should hold, for attacks that run several points of a sample side by side.
        team: copies of the model among which passes are shared; None for a model that works alone.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        eot: int = 1,
        average: Average = "loss",
        is_target: bool = True,
        rows: int = 512,
    ) -> None:
        self.model, self.average, self.rows = model, average, rows
        self._pools = any(isinstance(module, nn.MaxPool2d) for module in model.modules())
        self.forwards = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self.backwards = torch.zeros_like(self.forwards)
        with torch.no_grad():
            probe = x[:2].clone()
            first = model(probe)
            check_logits(first, len(probe))
            if not torch.equal(probe, x[:2]):
                raise InputError("the model changes its input in place; let its first layer return a new tensor.")
            self.classes = first.shape[1]
            noisy = is_random(model)
            self.randomised = noisy or not torch.equal(first, model(probe))
            self.channels_last = prefers_channels_last(model, probe)
        self.forwards[:2] += 1 + (not noisy) + self.channels_last
        self.decisive = is_target and not self.randomised
        # Draws of a deterministic model are all alike: one is enough.
        self.eot = eot if self.randomised else 1
        self._passes = passes(model, self.eot)
        self.team = None if self.randomised else team(model, self.arrange(probe))

    def arrange(self, x: Tensor) -> Tensor:
        """Return x in the memory layout that this model runs fastest in; values are unchanged."""
        return channels_last(x) if self.channels_last else x

    @torch.no_grad()
    def logits(self, x: Tensor, index: Tensor, draws: int = 1) -> Tensor:
        """Return logits [draws, B, K] without gradient; ``index`` says which samples these are, some maybe twice."""
        _count(self.forwards, index, passes(self.model, draws))
        if self.team is not None and draws == 1:
            return self.team.logits(self.arrange(x))[None]
        # Without gradients only pooling gains by it, and looking at every call costs a small network a tenth of its time.
        with FastGradients() if self._pools else contextlib.nullcontext():
            return draw_logits(self.model, self.arrange(x), draws)

    def trace(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return a leaf with the values of x and its logits [B, K], averaged over ``eot`` draws, for :meth:`pull`.

        Raises:
            InputError: as :meth:`gradient`.
        """
        leaf = self.arrange(x.detach()).requires_grad_()
        with torch.enable_grad(), FastGradients():
            logits = draw_logits(self.model, leaf, self.eot).mean(0)
        _require_gradient(logits)
        _count(self.forwards, index, self._passes)
        return leaf, logits

    def pull(self, value: Tensor, leaf: Tensor, index: Tensor, again: bool = False) -> Tensor:
        """Return the gradient at the leaf [B, ...] of ``value`` [B], made of its logits; ``again`` if another one follows."""
        with FastGradients():
            (gradient,) = torch.autograd.grad(value.sum(), leaf, retain_graph=again)
        _count(self.backwards, index, self._passes)
        return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)

    def gradient(self, x: Tensor, goal: Goal, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the averaged loss [B], the logits of the last draw [B, K] and the loss's gradient [B, ...] at x.

        Raises:
            InputError: the model's output does not depend on its input in a way autograd can see.
        """
        values, logits, gradients = self.gradients(x, [goal], index)
        return values[0], logits, gradients[0]

    def gradients(self, x: Tensor, goals: Sequence[Goal], index: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return averaged losses [G, B], the logits of the last draw [B, K] and each loss's gradient [B, ...] at x.

        All goals share the forward pass.

        Raises:
            InputError: the model's output does not depend on its input in a way autograd can see.
        """
        if self.team is not None:
            _count(self.forwards, index, 1)
            _count(self.backwards, index, len(goals))
            return self.team.gradients(self.arrange(x.detach()), goals)
        x = self.arrange(x.detach()).requires_grad_()
        # A mean of losses is taken draw by draw where each draw is a whole pass: one graph in memory, not eot of them.
        alone = self._passes > 1 and self.average == "loss"
        draws = self.eot if alone else 1
        values: list[Tensor] = []
        found: list[Tensor] = []
        with torch.enable_grad(), FastGradients():
            for draw in range(draws):
                logits = draw_logits(self.model, x, 1 if alone else self.eot)
                for number, goal in enumerate(goals):
                    value = self.averaged(logits, goal)
                    _require_gradient(value)
                    (fresh,) = torch.autograd.grad(value.sum(), x, retain_graph=number < len(goals) - 1)
                    if draw == 0:
                        values.append(value.detach())
                        found.append(fresh)
                    else:
                        values[number] = values[number] + value.detach()
                        found[number] = found[number] + fresh
        _count(self.forwards, index, self._passes)
        _count(self.backwards, index, self._passes * len(goals))
        means = [one if draws == 1 else one / draws for one in found]
        clean = [torch.nan_to_num(one, nan=0.0, posinf=0.0, neginf=0.0) for one in means]
        return torch.stack(values) / draws, logits[-1].detach(), clean

    def spend(self, index: Tensor) -> None:
        """Count a forward pass of some samples that was made without this oracle."""
        _count(self.forwards, index, 1)

    def averaged(self, logits: Tensor, goal: Goal) -> Tensor:
        """Return the loss [B] of logits [draws, B, K], averaged over the draws as ``average`` says."""
        if self.average == "loss":
            return goal(logits).mean(0)
        if self.average == "logits":
            return goal(logits.mean(0))
        return goal(logits.log_softmax(-1).logsumexp(0) - torch.tensor(float(len(logits))).log())


def _count(spent: Tensor, index: Tensor, amount: int) -> None:
    """Count passes of some samples, as every pass does; one for a result that nobody waits for any more is the last."""
    go_on()
    spent.index_add_(0, index, spent.new_full((len(index),), amount))


def _require_gradient(value: Tensor) -> None:
    if not value.requires_grad:
        raise InputError(
            "the model's output carries no gradient with respect to its input (it is detached, or computed "
            "outside torch); use a transfer attack from a differentiable source model instead."
        )
