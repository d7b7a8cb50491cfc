"""Randomised smoothing: certified ℓ2 radii for any classifier, from its votes under Gaussian noise.

The smoothed classifier of a base classifier f is

    g(x) = argmax_c P(f(x + n) = c),    n ~ N(0, sigma^2 I).

If class c has P(f(x + n) = c) >= p > 1/2, then g(x + d) = c for all ||d||_2 < R = sigma * Phi^-1(p). The certificate is for g,
not for f, and it holds with probability 1 - alpha over the noise draws.

Noisy inputs are not clipped to the range of the data: the theorem is about x + n itself, and clipping would make a
base classifier of another kind. (It could be made part of f, as its first layer; that is the model's affair.)

Floating point: the theorem is about real numbers. The draws, the sums x + n and the network are rounded, and there are models
made for the purpose on which such a certificate is false (Voráček and Hein, "Sound randomized smoothing in
floating-point arithmetic", ICLR 2023). For the networks of practice they found next to no difference, but a radius given
here is a statement about the real-arithmetic network and ideal noise, not a proof about the rounded one.

Source: Cohen, Rosenfeld, Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019
(arXiv 1902.02918), theorem 1 and the procedures CERTIFY and PREDICT.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.special import betainc, betaincinv, ndtri
from torch import Tensor, nn

from stalwart.attacks.guard import undisturbed
from stalwart.attacks.layout import fitting_batch, prefers_channels_last
from stalwart.core.checks import check_images, check_logits
from stalwart.core.errors import InputError, UsageError
from stalwart.core.layout import channels_last
from stalwart.core.noise import for_each_sample, noise
from stalwart.core.numbers import Number, require
from stalwart.core.random import derive, generator

ABSTAIN = -1
"""The class that stands for "no class has been proved to win"."""

_BLOCK = 64
"""Noise is drawn this many inputs at a time, each block from its own generator, so that no batch size changes it."""


class Certificate(NamedTuple):
    """What :class:`SmoothResult` holds, for one input."""

    prediction: int
    radius: float
    guess: int
    votes: int
    p_lower: float


@dataclass(frozen=True, eq=False)
class SmoothResult:
    """Certificates for a batch; all tensors are on the CPU.

    Attributes:
        prediction: the proved class of the smoothed classifier, or -1 where it abstains; [B] integers.
        radius: ℓ2 radius in data units within which that class cannot change, 0 where it abstains; [B] float64.
        guess: the class with most votes among the first n0 draws, for which the bound is computed; [B] integers.
        votes: votes for the guess among n further draws; [B] integers.
        p_lower: lower confidence bound of P(f(x + n) = guess); [B] float64.
    """

    prediction: Tensor
    radius: Tensor
    guess: Tensor
    votes: Tensor
    p_lower: Tensor

    @classmethod
    def of(cls, certificates: Sequence[Certificate]) -> "SmoothResult":
        """Stack the certificates of a batch."""
        prediction, radius, guess, votes, p_lower = zip(*certificates, strict=True)
        wide = torch.float64
        return cls(
            torch.tensor(prediction),
            torch.tensor(radius, dtype=wide),
            torch.tensor(guess),
            torch.tensor(votes),
            torch.tensor(p_lower, dtype=wide),
        )


@dataclass(frozen=True)
class Smoothing:
    """How to smooth and with how many draws to certify.

    Args:
        sigma: standard deviation of the noise in data units, positive; train the model with the same one.
        n0: draws that choose the class, at least 1.
        n: fresh draws that estimate its probability. The largest possible radius is sigma * Phi^-1(alpha^(1/n)),
            which is 3.81 sigma for the defaults.
        alpha: probability that a certificate is false, in (0, 1/2).
        batch: noisy inputs in one forward pass, by default as many as keep activations small. It does not change the noise;
            the rounding of the model's own arithmetic may depend on it.

    Raises:
        UsageError: a value out of range, or so few draws that even unanimous ones could not certify anything.

    Example:
        >>> Smoothing(0.5, n=1000).largest_radius < Smoothing(0.5).largest_radius
        True
    """

    sigma: Number
    n0: int = 100
    n: int = 100_000
    alpha: Number = 0.001
    batch: int | None = None

    def __post_init__(self) -> None:
        require(0 < self.sigma < math.inf, f"sigma must be positive and finite, got {self.sigma}.")
        require(self.n0 >= 1, f"n0 must be at least 1 noise draw, got {self.n0}.")
        require(0 < self.alpha < 0.5, f"alpha must lie in (0, 1/2), got {self.alpha}.")
        require(self.batch is None or self.batch >= 1, f"the batch size must be at least 1, got {self.batch}.")
        # All n votes for one class give p = alpha^(1/n), which must exceed 1/2.
        needed = math.floor(-math.log2(self.alpha)) + 1
        require(
            self.n >= needed,
            f"n = {self.n} noise draws cannot certify anything at alpha = {self.alpha:g}, even if all agree; "
            f"it takes at least {needed}.",
        )

    @property
    def largest_radius(self) -> float:
        """The radius that n votes for one class give: no certificate can be larger."""
        return float(self.sigma * ndtri(lower_bound(self.n, self.n, self.alpha)))

    def certify(self, model: nn.Module, x: Tensor, seed: int = 0, index: Sequence[int] | None = None) -> SmoothResult:
        """Certify each input: n0 draws choose a class, n fresh ones bound its probability p from below.

        p = Beta^-1(alpha; k, n - k + 1) for k votes of n (Clopper and Pearson 1934, one-sided); p <= 1/2 abstains, otherwise
        R = sigma * Phi^-1(p). A noisy input votes for a class only if its logit is strictly the largest, so that ties and
        NaN count against every class.

        Args:
            model: maps [B, ...] to logits [B, K], each input on its own; deterministic, or random by noise layers that draw
                for each sample, such as an encoder of spikes: then its draws are part of the vote. It is evaluated in
                evaluation mode and left exactly as it was.
            x: inputs [B, ...] in [0, 1]; a GPU draws other noise than the CPU.
            seed: the same seed and index give the same noise, whatever else is in the batch.
            index: a number for each input that its noise derives from; by default 0 to B - 1.

        Raises:
            InputError: inputs that are not finite or out of range, a model that returns no logits or none that are finite.
            UsageError: the model is random in another way: noise may be shared by a batch, and votes would not be independent.
        """
        numbers = _numbers(x, index)
        with self.certifier(model, x, seed) as certify_one:
            return SmoothResult.of([certify_one(row, number) for row, number in zip(x, numbers, strict=True)])

    @contextlib.contextmanager
    def certifier(self, model: nn.Module, x: Tensor, seed: int = 0) -> Iterator[Callable[[Tensor, int], Certificate]]:
        """Give a function (input [...], its number) -> certificate inside the block, for inputs of ``x`` one at a time.

        Arguments and errors are those of :meth:`certify`; until the block ends the model is in evaluation mode.
        """
        with _Voters.of(model, x, self.sigma, self.batch, seed) as voters:

            def certify_one(row: Tensor, number: int) -> Certificate:
                def votes(count: int, what: str) -> Tensor:
                    return voters.votes(row, count, derive(seed, what, number))

                return two_stage(votes, self.n0, self.n, self.alpha, lambda p: self.sigma * float(ndtri(p)))

            yield certify_one

    def predict(
        self,
        model: nn.Module,
        x: Tensor,
        n: int | None = None,
        alpha: float | None = None,
        seed: int = 0,
        index: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the smoothed classifier's class of each input, or -1 where the votes leave it open; [B] integers.

        The two classes with most votes are compared by the two-sided binomial test of p = 1/2; a p-value above alpha
        abstains. A class that is returned is g(x) with probability 1 - alpha.

        Args:
            model, x, seed, index: as for :meth:`certify`.
            n: noise draws; by default the record's.
            alpha: probability of a wrong answer, in (0, 1/2); by default the record's.

        Raises:
            InputError, UsageError: as for :meth:`certify`; or so few draws that it could only abstain.
        """
        n, alpha = self.n if n is None else n, self.alpha if alpha is None else alpha
        require(0 < alpha < 0.5, f"alpha must lie in (0, 1/2), got {alpha}.")
        needed = math.ceil(1 - math.log2(alpha))  # n equal votes have the p-value 2 / 2^n
        require(n >= needed, f"n = {n} noise draws can only abstain at alpha = {alpha:g}; it takes at least {needed}.")
        found = []
        with _Voters.of(model, x, self.sigma, self.batch, seed) as voters:
            for row, number in zip(x, _numbers(x, index), strict=True):
                (first, second), order = voters.votes(row, n, derive(seed, "predict", number)).topk(2)
                sure = two_sided(int(first), int(first + second)) <= alpha
                found.append(int(order[0]) if sure else ABSTAIN)
        return torch.tensor(found)


def two_stage(
    votes: Callable[[int, str], Tensor], n0: int, n: int, alpha: float, radius: Callable[[float], float]
) -> Certificate:
    """Choose a class by n0 draws, bound its probability by n others, and certify it if that exceeds 1/2.

    Args:
        votes: (draws, "select" or "estimate") -> votes [K].
        n0, n, alpha: as for :class:`Smoothing`.
        radius: what a probability above 1/2 certifies.
    """
    guess = int(votes(n0, "select").argmax())
    won = int(votes(n, "estimate")[guess])
    p = lower_bound(won, n, alpha)
    if p <= 0.5:
        return Certificate(ABSTAIN, 0.0, guess, won, p)
    return Certificate(guess, radius(p), guess, won, p)


def tally(logits: Tensor) -> Tensor:
    """Return the votes [K] of logits [B, K]: for a class whose logit is strictly the largest, so that ties vote for none."""
    top, order = logits.topk(2, 1)
    classes = logits.shape[1]
    # One more class holds what votes for none.
    choice = torch.where(top[:, 0] > top[:, 1], order[:, 0], classes)
    return torch.bincount(choice, minlength=classes + 1)[:classes]


def lower_bound(votes: int, n: int, alpha: float) -> float:
    """Return the one-sided Clopper-Pearson bound: P(votes or more of n) is alpha at this probability, 0 for no votes.

    Source: Clopper and Pearson, Biometrika 1934.
    """
    return float(betaincinv(votes, n - votes + 1, alpha)) if votes else 0.0


def two_sided(votes: int, n: int) -> float:
    """Return the p-value of the two-sided test that ``votes`` of n, at least half of them, come from a fair coin."""
    return min(1.0, 2 * float(betainc(votes, n - votes + 1, 0.5))) if votes else 1.0


@dataclass(frozen=True)
class _Voters:
    """A model that is ready to vote on noisy copies of one input."""

    model: nn.Module
    sigma: float
    batch: int
    classes: int
    channels_last: bool

    @classmethod
    @contextlib.contextmanager
    def of(cls, model: nn.Module, x: Tensor, sigma: float, batch: int | None, seed: int) -> Iterator["_Voters"]:
        """Check inputs and model, and keep the model in evaluation mode inside the block."""
        check_images(x)
        with undisturbed(model, seed), torch.no_grad():
            probe = x[:2].clone()
            logits = model(probe.clone())
            check_logits(logits, len(probe))
            if not torch.isfinite(logits).all():
                raise InputError("the model's logits are NaN or infinite on the first inputs; its weights are damaged.")
            random = for_each_sample(model, probe)
            if not random and not torch.equal(logits, model(probe.clone())):
                raise UsageError(
                    "smoothing needs a deterministic model, or one whose noise is drawn for each sample: noise that a whole "
                    "batch shares makes votes depend on each other. Switch it off or fix it with "
                    "stalwart.stochastic.noise(model, ...)."
                )
            size = fitting_batch(model, probe) if batch is None else batch
            yield cls(model, sigma, size, logits.shape[1], not random and prefers_channels_last(model, probe))

    def votes(self, x: Tensor, count: int, seed: int) -> Tensor:
        """Return the votes [K] that ``count`` noisy copies of one input x [...] give to each class."""
        with noise(self.model, seed=derive(seed, "model")):
            return self._votes(x, count, seed)

    def _votes(self, x: Tensor, count: int, seed: int) -> Tensor:
        rows = max(self.batch // _BLOCK, 1) * _BLOCK
        buffer = x.new_empty((rows, *x.shape))
        votes = torch.zeros(self.classes, dtype=torch.long, device=x.device)
        for start in range(0, count, rows):
            used = min(rows, count - start)
            for first in range(0, used, _BLOCK):
                source = generator(seed, (start + first) // _BLOCK, device=x.device)
                buffer[first : first + _BLOCK].normal_(0.0, self.sigma, generator=source)
            for part in buffer[:used].add_(x).split(self.batch):
                logits = self.model(channels_last(part) if self.channels_last else part)
                votes += tally(logits)
        return votes


def _numbers(x: Tensor, index: Sequence[int] | None) -> Sequence[int]:
    if index is None:
        return range(len(x))
    require(len(index) == len(x), f"{len(index)} index numbers for {len(x)} inputs; give one an input.")
    return index
