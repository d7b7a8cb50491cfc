"""The Square attack: random search by squares, which needs no gradient."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stalwart.attacks.base import BallAttack, Count
from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.attacks.square_linf import judged, search
from stalwart.core.numbers import Number, require
from stalwart.core.random import generator, uniform
from stalwart.sets import L2, Linf, ThreatSet
from stalwart.sets.base import expand

_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_TILES = 5
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Square(BallAttack):
    """Random search in an linf, l2 or l1 ball: change a square of the image, keep the change where the loss grows.

    linf: the start is x with vertical stripes of ±eps; a proposal sets a random square to x ± eps, one sign a channel.
    l2: the start is a grid of bumps of either sign; a proposal moves the perturbation of one random square to another, where
    it is added to a bump, and spends what is left of the radius there. Squares are about p of the image; p starts at
    ``p_init`` and is halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of every 10000 queries.

    l1: as l2, with lengths in l1 and steeper bumps.

    Images are the last two axes, and all axes before them channels; inputs [B, C, L] are images of one row, and inputs [B, D]
    those of one row and one channel. A square that does not fit into a flat image becomes a rectangle of the same area.

    A proposal that leaves the point as it is costs no query. In linf, where those that follow do not depend on it, a sample may
    have several proposals tried in one pass once few are accepted; those behind an accepted one are tried anew. They count as
    cost but not as queries: the search is the one proposal by proposal. Where a stack of convolutions, poolings and pointwise
    layers comes before linear ones, a pass computes only what its square reaches.
    No gradient is used, so that one which hides or misleads does not protect. A deterministic target's sample is done once
    it is misclassified. On a randomised model nothing is: losses are averages over ``eot`` draws, best taken large.
    Source: Andriushchenko, Croce, Flammarion, Hein, ECCV 2020 (arXiv 1912.00049), algorithms 1 to 3; for l1
    Croce and Hein, ICML 2021 (arXiv 2103.01208), appendix.

    Attributes:
        queries: points tried for each sample, the start among them, at least 1.
        p_init: p at the beginning, in (0, 1].
        horizon: queries over which p is halved nine times, ``queries`` by default; AutoAttack has 10000, so that its 5000 end
            on larger squares.
        loss: "margin" or "ce".
    """

    queries: Count = 5000
    p_init: Number = 0.8
    horizon: Count | None = None
    loss: Literal["margin", "ce"] = "margin"
    self_contained: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.queries >= 1, f"queries must be at least 1, got {self.queries}.")
        require(self.horizon is None or self.horizon >= 1, f"horizon must be at least 1, got {self.horizon}.")
        require(0 < self.p_init <= 1, f"p_init must lie in (0, 1], got {self.p_init}.")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, within: ThreatSet, seed: int) -> Tensor:
        """Return the point of largest loss of each sample, or the first that a decisive oracle misclassifies.

        Raises:
            InputError: the threat set is not an linf, l2 or l1 ball.
        """
        self.require_ball(within)
        source = generator(seed, "square", device=x.device)
        goal, images = Goal(self.loss, y), _as_images(x)
        if isinstance(within, Linf):
            change = _stripes(images, expand(within.radius, images), source)
            start = _as_images(within.project(x, x + change.reshape(x.shape)))
            return search(oracle, goal, x, start, within, self._sizes(images), source)
        power = 2 if isinstance(within, L2) else 1
        index = torch.arange(len(x), device=x.device)
        found, best = x.clone(), x.clone()
        value = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        for query in range(self.queries):
            images, eps = _as_images(x), expand(within.radius, _as_images(x))
            if query == 0:
                change = _bumps(images, eps, source, power)
            else:
                change = _move(_as_images(best) - images, eps, self.share(query - 1), source, power)
            z = within.project(x, x + change.reshape(x.shape))
            # A proposal that changes nothing has a known answer: late in the search that is the fate of about half of them.
            new = index if query == 0 or oracle.randomised else (z != best).flatten(1).any(1).nonzero()[:, 0]
            if not len(new):
                continue
            some = len(new) < len(z)
            rows, aims, seen = (z[new], goal.select(new), index[new]) if some else (z, goal, index)
            fresh, missed = judged(oracle, aims, oracle.logits(rows, seen, oracle.eot))
            better = (fresh > (value[new] if some else value)) | missed
            if not better.any():
                continue
            at = new[better] if some else better.nonzero()[:, 0]
            best[at], value[at] = rows[better], fresh[better]
            if missed.any():
                wrong = torch.zeros_like(index, dtype=torch.bool)
                wrong[new[missed] if some else missed.nonzero()[:, 0]] = True
                found[index[wrong]] = best[wrong]
                alive = (~wrong).nonzero()[:, 0]
                if not len(alive):
                    return found
                x, best, value, index = x[alive], best[alive], value[alive], index[alive]
                goal, within = goal.select(alive), within.select(alive)
        found[index] = best
        return found

    def _sizes(self, images: Tensor) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield how many proposals after the start come one after the other on windows of one size, and that size."""
        for share, proposals in itertools.groupby(self.share(k) for k in range(self.queries - 1)):
            yield len(list(proposals)), _window(share, images, 1)

    def share(self, proposal: int) -> float:
        """Return p, the share of the image that proposal number ``proposal`` (from 0) changes."""
        place = 10000 * proposal // (self.horizon or self.queries)
        return self.p_init / 2 ** sum(place > after for after in _HALVED_AFTER)


def _as_images(x: Tensor) -> Tensor:
    """Return x as [B, C, H, W]."""
    if x.dim() < 4:
        return x.reshape(len(x), -1, 1, x.shape[-1])
    return x.reshape(len(x), -1, *x.shape[-2:])


def _stripes(x: Tensor, eps: float | Tensor, source: torch.Generator) -> Tensor:
    return (eps * _signs((len(x), x.shape[1], 1, x.shape[3]), source, x)).expand_as(x)


def _bumps(x: Tensor, eps: float | Tensor, source: torch.Generator, power: int = 2) -> Tensor:
    """Return about five bumps a side, in the middle, of length eps together."""
    height, width = x.shape[2:]
    tile = max(height // _TILES, 1), max(width // _TILES, 1)
    change = torch.zeros_like(x)
    for row in range(height % tile[0] // 2, height - tile[0] + 1, tile[0]):
        for column in range(width % tile[1] // 2, width - tile[1] + 1, tile[1]):
            change[:, :, row : row + tile[0], column : column + tile[1]] = _dipoles(x, tile, source, power)
    return eps * change / change.abs().pow(power).sum((1, 2, 3), keepdim=True).pow(1 / power)


def _move(change: Tensor, eps: float | Tensor, share: float, source: torch.Generator, power: int = 2) -> Tensor:
    """Return the change with its length in a second window, and what is left of eps, spent in a first one."""
    size = _window(share, change, 3)
    here, there = _place(change, size, source), _place(change, size, source)
    both = _mask(change, here) | _mask(change, there)
    mass = change.abs().pow(power)
    spent = (mass * both).sum((2, 3), keepdim=True)
    unused = (eps**power - mass.sum((1, 2, 3), keepdim=True)).clamp_min(0)
    old = change[here]
    direction = _dipoles(change, size, source, power) + old / (_lengths(old, power) + _TINY)
    moved = change.clone()
    moved[there] = 0
    moved[here] = direction / (_lengths(direction, power) + _TINY) * (unused / change.shape[1] + spent).pow(1 / power)
    return moved


def _window(share: float, images: Tensor, least: int) -> tuple[int, int]:
    """Return rows and columns of a window on ``share`` of the image, a square where it fits; odd where ``least`` is above 1."""
    height, width = images.shape[2:]
    area = share * height * width
    side = max(round(math.sqrt(area)), least) | (least > 1)
    rows = max(round(area / width), least) if side > width else side
    columns = max(round(area / height), least) if side > height else side
    return min(rows, height), min(columns, width)


def _place(images: Tensor, size: tuple[int, int], source: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the index of one window a sample at a random place: images[index] is [B, C, rows, columns]."""
    axes = []
    for length, whole in zip(size, images.shape[2:], strict=True):
        first = (uniform(images.shape[:1], source, images) * (whole - length + 1)).long().clamp_max(whole - length)
        axes.append(first[:, None] + torch.arange(length, device=images.device))
    samples, channels = (torch.arange(n, device=images.device) for n in images.shape[:2])
    return samples[:, None, None, None], channels[:, None, None], axes[0][:, None, :, None], axes[1][:, None, None, :]


def _mask(images: Tensor, window: tuple[Tensor, ...]) -> Tensor:
    """Return which entries of the images the windows cover."""
    mask = torch.zeros_like(images, dtype=torch.bool)
    mask[window] = True
    return mask


def _signs(shape: tuple[int, ...], source: torch.Generator, like: Tensor) -> Tensor:
    return 1 - 2 * (uniform(shape, source, like) < 0.5).to(like.dtype)


def _lengths(images: Tensor, power: int) -> Tensor:
    return images.abs().pow(power).sum((2, 3), keepdim=True).pow(1 / power)


def _dipoles(images: Tensor, size: tuple[int, int], source: torch.Generator, power: int) -> Tensor:
    """Return [B, C, rows, columns]: one bump up and one down, side by side or above each other, signs by channel."""
    rows, columns = size
    upright = uniform((len(images), 1, 1, 1), source, images) < 0.5
    pattern = torch.where(upright, _dipole(rows, columns, images, power), _dipole(columns, rows, images, power).T)
    return pattern * _signs((*images.shape[:2], 1, 1), source, images)


def _dipole(rows: int, columns: int, like: Tensor, power: int = 2) -> Tensor:
    both = torch.cat([_bump(rows // 2, columns, like, power), -_bump(rows - rows // 2, columns, like, power)])
    return both / both.norm(p=power)


def _bump(rows: int, columns: int, like: Tensor, power: int = 2) -> Tensor:
    """Return Σ_{n >= d} 1 / (n + 1)² at max-norm distance d from the centre, of length 1: a bell of squares.

    In l1 the terms are 1 / (n + 1)⁴.
    """
    down, across = (torch.arange(n, device=like.device).sub(n // 2).abs() for n in (rows, columns))
    distance = torch.maximum(down[:, None], across)
    number = torch.arange(1, max(rows // 2, columns // 2) + 2, device=like.device, dtype=like.dtype)
    bell = number.pow(-2 if power == 2 else -4).flip(0).cumsum(0).flip(0)[distance]
    return bell / bell.norm(p=power)
