"""A universal patch of events: one disc, learned once, that turns many recordings into the same class wherever it lies."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from stalwart.attacks.base import Count
from stalwart.attacks.fast_gradients import FastGradients
from stalwart.attacks.guard import undisturbed
from stalwart.core.checks import check_labels, check_logits
from stalwart.core.errors import FileError, InputError
from stalwart.core.numbers import Number, require
from stalwart.core.random import generator, uniform
from stalwart.core.tensors import load_tensors, save_tensors
from stalwart.sets import Events

Window = tuple[int, int, int, int]
"""Top, bottom, left and right: rows and columns that a patch stays inside, ends excluded."""


@dataclass(frozen=True, eq=False)
class Patch:
    """A disc that replaces the events under it, the same in every sample, at a place of each sample's own.

    Attributes:
        values: [..., 2r, 2r], the axes of a raster; what is above one half is an event.
        mask: [2r, 2r] booleans, the disc.
        target: the class that it is made for.
        window: where it may lie.
    """

    values: Tensor
    mask: Tensor
    target: int
    window: Window

    @property
    def bins(self) -> int:
        """How many bins it replaces, an upper bound of the flips that it makes."""
        return int(self.mask.sum()) * self.values[..., 0, 0].numel()

    @property
    def events(self) -> int:
        """How many events it holds."""
        return int(((self.values > 0.5) & self.mask).sum())

    def apply(self, x: Tensor, seed: int = 0) -> Tensor:
        """Return round(clip((1 - mask) x + mask values)), binary, at a random place of each sample.

        Args:
            x: binary rasters [B, ..., H, W].
            seed: of the places.

        Raises:
            InputError: values other than 0 and 1, or rasters of another shape than the patch is made for.
        """
        _check_rasters(x)
        if x.shape[1:-2] != self.values.shape[:-2] or self.window[1] > x.shape[-2] or self.window[3] > x.shape[-1]:
            raise InputError(
                f"the patch is one of {list(self.values.shape)} for rows {self.window[0]} to {self.window[1]} and columns "
                f"{self.window[2]} to {self.window[3]}, which rasters {list(x.shape)} do not have; learn one for them."
            )
        return self.at(x, self.places(len(x), generator(seed, "places", device=x.device)))

    def shuffled(self, seed: int = 0) -> "Patch":
        """Return a random patch to compare with: the same disc and as many events, at random bins of it."""
        values = self.values.clone()
        inside = values[..., self.mask]
        lots = torch.rand(inside.numel(), generator=generator(seed, "shuffle"))
        values[..., self.mask] = inside.flatten()[lots.argsort().to(inside.device)].reshape(inside.shape)
        return Patch(values, self.mask, self.target, self.window)

    def save(self, path: Path | str) -> None:
        """Write it to a safetensors file."""
        about = {"target": self.target, "window": list(self.window)}
        save_tensors(path, {"values": self.values, "mask": self.mask}, about)

    @classmethod
    def load(cls, path: Path | str) -> "Patch":
        """Read :meth:`save` back.

        Raises:
            FileError: it is missing, damaged or no patch.
        """
        tensors, about = load_tensors(path, "the patch")
        try:
            top, bottom, left, right = map(int, about["window"])
            return cls(tensors["values"], tensors["mask"], int(about["target"]), (top, bottom, left, right))
        except (KeyError, TypeError, ValueError):
            raise FileError(f"{path} holds no patch of events; save one by Patch.save.") from None

    def places(self, count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw the rows and columns that ``count`` samples have it at, [B, 2r] each."""
        top, bottom, left, right = self.window
        size, like = self.mask.shape[0], self.values
        found = []
        for first, end in ((top, bottom), (left, right)):
            room = end - first - size + 1
            at = (uniform((count,), source, like) * room).long().clamp_max(room - 1) + first
            found.append(at[:, None] + torch.arange(size, device=like.device))
        return found[0], found[1]

    def at(self, x: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
        """Return x [B, ..., H, W] with the patch at these places."""
        flat, values = x.reshape(len(x), -1, *x.shape[-2:]).clone(), self.values.flatten(0, -3)
        index = _index(flat, places)
        flat[index] = torch.where(self.mask, values.clamp(0, 1).round(), flat[index])
        return flat.reshape(x.shape)

    def moved(self, gradient: Tensor, places: tuple[Tensor, Tensor], step: float) -> "Patch":
        """Return the patch a step against the sum of the gradients [B, ..., H, W] under it."""
        flat = gradient.reshape(len(gradient), -1, *gradient.shape[-2:])
        under = flat[_index(flat, places)].sum(0).reshape(self.values.shape)
        return Patch(self.mask * (self.values - step * under), self.mask, self.target, self.window)


@dataclass(frozen=True, kw_only=True)
class EventPatch:
    """How a universal patch of events is learned.

        patch <- mask (patch - step ∇(-log p_target)) at X = round(clip((1 - mask) X + patch))

    until p_target reaches ``confidence``, on one batch of the training inputs after the other, at random places.
    Source: Büchel et al., Frontiers in Neuroscience 2022 (arXiv 2110.02929), its adversarial patches; Brown et al. 2017 (arXiv
    1712.09665).

    Attributes:
        target: the class that samples of all others are to be taken for.
        share: area of the disc, as a share of the frame, in (0, 1).
        window: top, bottom, left and right, the rows and columns that it stays inside; by default the whole frame.
        confidence: mean probability of the target at which a batch is done.
        steps: gradient steps on a batch at most.
        step: factor of the gradient, which is summed over the batch.
        batch: inputs learned from together; the published 1 follows one input after the other.
        epochs: passes over the training inputs.
    """

    target: Count
    share: Number = 0.025
    window: Window | None = None
    confidence: Number = 0.75
    steps: Count = 300
    step: Number = 1.0
    batch: Count = 1
    epochs: Count = 1

    def __post_init__(self) -> None:
        require(self.target >= 0, f"the target is a class from 0 on, got {self.target}.")
        require(0 < self.share < 1, f"share must lie in (0, 1), got {self.share}.")
        require(0 < self.confidence <= 1, f"confidence must lie in (0, 1], got {self.confidence}.")
        require(self.step > 0, f"step must be positive, got {self.step}.")
        for name in ("steps", "batch", "epochs"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}.")

    def fit(self, model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> Patch:
        """Learn a patch on inputs that the model decides rightly and that are not of the target's class.

        Args:
            model: maps [B, ...] to logits [B, K]; left exactly as it was.
            x: binary rasters [B, ..., H, W].
            y: labels [B].
            seed: of the order and the places.

        Raises:
            InputError: values other than 0 and 1, labels that do not exist, or no input to learn from.
            UsageError: a target that does not exist, or a disc that does not fit into the window.
        """
        _check_rasters(x)
        check_labels(y, len(x))
        source, patch = generator(seed, "patch", device=x.device), self._blank(x)
        with undisturbed(model, seed):
            with torch.no_grad():
                logits = torch.cat([model(part) for part in x.split(max(self.batch, 64))])
            check_logits(logits, len(x))
            check_labels(y, len(x), logits.shape[1])
            require(
                self.target < logits.shape[1], f"the model knows classes 0 to {logits.shape[1] - 1}, not {self.target}."
            )
            chosen = ((logits.argmax(1) == y) & (y != self.target)).nonzero()[:, 0]
            if not len(chosen):
                raise InputError(
                    f"no input to learn a patch from: the model decides none rightly whose class is not {self.target}."
                )
            for _ in range(self.epochs):
                order = chosen[uniform((len(chosen),), source, x).argsort()]
                for part in order.split(self.batch):
                    patch = self._learn(model, x[part], patch, source)
        return patch

    def _learn(self, model: nn.Module, x: Tensor, patch: Patch, source: torch.Generator) -> Patch:
        places = patch.places(len(x), source)
        for _ in range(self.steps):
            leaf = patch.at(x, places).requires_grad_()
            with torch.enable_grad(), FastGradients():
                log_p = model(leaf).log_softmax(1)[:, self.target]
                if float(log_p.detach().exp().mean()) >= self.confidence:
                    break
                (gradient,) = torch.autograd.grad(-log_p.sum(), leaf)
            patch = patch.moved(gradient, places, self.step)
        return patch

    def _blank(self, x: Tensor) -> Patch:
        height, width = x.shape[-2:]
        top, bottom, left, right = window = self.window or (0, height, 0, width)
        radius = int(math.sqrt(self.share * height * width / math.pi))
        require(radius >= 1, f"a disc of {self.share:g} of {height} x {width} bins has no bin; take a larger share.")
        inside = 0 <= top < bottom <= height and 0 <= left < right <= width
        require(
            inside and 2 * radius <= min(bottom - top, right - left),
            f"a disc of {2 * radius} x {2 * radius} bins does not fit into the window {window} of {height} x {width} bins.",
        )
        ends = torch.arange(-radius, radius, device=x.device) + 0.5
        mask = ends.square()[:, None] + ends.square() <= radius**2
        return Patch(x.new_zeros(*x.shape[1:-2], *mask.shape), mask, self.target, window)


def _check_rasters(x: Tensor) -> None:
    if x.dim() < 4:
        raise InputError(
            f"patches lie on rasters [B, ..., H, W] such as event frames [B, T, 2, H, W], got {list(x.shape)}."
        )
    Events(0).bounds(x)  # refuses what is not binary


def _index(flat: Tensor, places: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    samples, channels = (torch.arange(n, device=flat.device) for n in flat.shape[:2])
    rows, columns = places
    return samples[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
