"""What an attack on weights may ask of a model: the loss over all inputs, and its gradient with respect to the weights."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from stalwart.attacks.base import JUDGE_DRAWS
from stalwart.attacks.layout import prefers_channels_last
from stalwart.attacks.losses import cross_entropy, kl_divergence
from stalwart.attacks.replaced import run_with
from stalwart.core.checks import check_labels, check_logits
from stalwart.core.errors import InputError
from stalwart.core.layout import channels_last
from stalwart.sets.relative import Parameters
from stalwart.stochastic import is_random

WeightLoss = Literal["ce", "kl"]


class WeightOracle:
    """Access to one model on one set of inputs, under other weights.

    Inputs pass in chunks; losses and gradients are means over all of them. Every pass over a randomised model draws afresh,
    and a gradient is the mean over ``eot`` draws.

    Attributes:
        params: the clean weights, by name.
        before: scores [B, K] at the clean weights: logits, or log probabilities averaged over draws if randomised.
        randomised: whether two calls on the same input differ.
        forwards, backwards: passes spent on each input, without the probes of the first two.
    """

    def __init__(
        self, model: nn.Module, params: Parameters, x: Tensor, y: Tensor, loss: WeightLoss, eot: int, batch_size: int
    ) -> None:
        self.model, self.params, self.loss_name = model, params, loss
        self.forwards = self.backwards = 0
        with torch.no_grad():
            probe = x[:2].clone()
            first = model(probe)
            check_logits(first, len(probe))
            check_labels(y, len(x), first.shape[1])
            if not torch.equal(probe, x[:2]):
                raise InputError("the model changes its input in place; let its first layer return a new tensor.")
            self.randomised = is_random(model) or not torch.equal(first, model(probe))
            arranged = prefers_channels_last(model, probe)
        self._eot = eot if self.randomised else 1
        self._x = [channels_last(part) if arranged else part for part in x.split(batch_size)]
        self._y, self._batch_size = y, batch_size
        self.before = self.scores(params)
        self._clean = self.before.log_softmax(-1).split(batch_size)

    @torch.no_grad()
    def scores(self, moved: Parameters) -> Tensor:
        """Return scores [B, K] at other weights; of a randomised model, the log of the softmax averaged over 20 draws."""
        draws = JUDGE_DRAWS if self.randomised else 1
        self.forwards += draws
        found = [torch.stack([run_with(self.model, moved, part) for _ in range(draws)]) for part in self._x]
        if not self.randomised:
            return torch.cat([part[0] for part in found])
        return torch.cat([part.log_softmax(-1).logsumexp(0) - torch.tensor(float(draws)).log() for part in found])

    def value(self, scores: Tensor) -> float:
        """Return the mean loss of scores [B, K] of all inputs."""
        parts = zip(scores.split(self._batch_size), range(len(self._x)), strict=True)
        return sum(float(self._loss(part, number).sum()) for part, number in parts) / len(scores)

    @torch.no_grad()
    def loss(self, moved: Parameters) -> float:
        """Return the mean loss at other weights."""
        return sum(float(value) for value in self._values(moved))

    def gradient(self, moved: Parameters) -> tuple[float, dict[str, Tensor]]:
        """Return the mean loss at other weights and its gradient; 0 for weights that it does not depend on.

        Raises:
            InputError: the loss depends on none of them in a way autograd can see.
        """
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in moved.items()}
        total, slopes = 0.0, {name: torch.zeros_like(tensor) for name, tensor in leaves.items()}
        with torch.enable_grad():
            for value in self._values(leaves):
                if not value.requires_grad:
                    raise InputError(
                        "the model's output carries no gradient with respect to the chosen parameters (it is detached, or "
                        "computed outside torch); use 'weight-corner', which needs none."
                    )
                found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
                total += float(value.detach())
                for name, slope in zip(leaves, found, strict=True):
                    if slope is not None:
                        slopes[name] += torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
        self.backwards += self._eot
        return total, slopes

    def _values(self, moved: Parameters) -> Iterator[Tensor]:
        self.forwards += self._eot
        for number, part in enumerate(self._x):
            for _ in range(self._eot):
                logits = run_with(self.model, moved, part)
                yield self._loss(logits, number).sum() / (len(self._y) * self._eot)

    def _loss(self, scores: Tensor, number: int) -> Tensor:
        if self.loss_name == "kl":
            return kl_divergence(self._clean[number], scores.log_softmax(-1))
        start = number * self._batch_size
        return cross_entropy(scores, self._y[start : start + len(scores)])
