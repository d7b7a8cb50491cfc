"""The Square attack's search in an linf ball, where proposals do not depend on what was found before them.

A proposal paints a square with clean values ± eps, whatever the point is by then. So the next few of a sample can be looked at
together: those that change nothing are passed over, several others go through the model in one pass, the first that is better
is taken, and what came after it is tried again from the better point. Every sample takes the same way as if proposals were
tried one by one, at its own pace, and passes stay large when few samples are left or most proposals change nothing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from stalwart.attacks.losses import Goal
from stalwart.attacks.oracle import Oracle
from stalwart.attacks.patches import Known
from stalwart.core import jit
from stalwart.core.random import uniform
from stalwart.sets import ThreatSet

_PASS = 512
"""Rows of a pass up to which proposals of a sample are tried together."""
_OVERHEAD, _OVERHEAD_OF_PATCHES = 30, 120
"""How many rows take as long as all else in a pass, about: in a whole one, and where only windows are followed."""
_AHEAD = 64
"""Most proposals of a sample looked at together, where no loop is compiled."""
_WORTHWHILE = 0.6
"""Share of a whole pass, with those of accepted points, below which windows are followed through the layers instead."""
_CHAPTER = 1000
"""Most proposals drawn at a time."""


def search(
    oracle: Oracle,
    goal: Goal,
    x: Tensor,
    start: Tensor,
    within: ThreatSet,
    sizes: Iterable[tuple[int, tuple[int, int]]],
    source: torch.Generator,
) -> Tensor:
    """Return the point [B, ...] of largest loss of each sample, or the first that a decisive oracle misclassifies.

    Args:
        oracle: access to the model.
        goal: the loss, and what misclassified means.
        x: clean inputs [B, ...].
        start: the first points as images [B, C, H, W], of as many entries as x.
        within: the linf ball.
        sizes: how many proposals follow, and the rows and columns of their windows.
        source: the source of randomness.
    """
    low, high = within.bounds(x)
    index = torch.arange(len(x), device=x.device)
    best = start.flatten(1).clone()
    value, wrong = judged(oracle, goal, oracle.logits(best.view(x.shape), index, oracle.eot))
    sides = torch.cat([low.flatten(1), high.flatten(1)], 1)
    patches = Known.of(oracle.team.scorer) if oracle.team is not None and jit.reads(x) else None
    climb = _Climb(oracle, goal, x.shape, index, sides, best, value, best.clone(), patches=patches)
    climb.leave(wrong)
    for count, size in sizes:
        for begun in range(0, count, _CHAPTER):
            if len(climb.index):
                climb.chapter(_drawn(min(_CHAPTER, count - begun), len(climb.index), start, size, source), size)
    climb.found[climb.index] = climb.best
    return climb.found.view(x.shape)


def judged(oracle: Oracle, goal: Goal, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the averaged loss [B] of logits [draws, B, K] and which points a decisive oracle misclassifies by them, [B]."""
    value = oracle.averaged(logits, goal)
    if not oracle.decisive:
        return value, torch.zeros_like(value, dtype=torch.bool)
    # The margin of one draw says both.
    return value, ~(value < 0) if goal.loss == "margin" and len(logits) == 1 else goal.broken(logits[-1])


@dataclass(eq=False)
class _Proposals:
    """The next n proposals of each sample, for points whose entries are numbered from 0 to N - 1.

    Attributes:
        corner: the entry that is the window's first, [B, n].
        side: 0 where a channel is painted with the lowest values and N with the highest, [B, n, C].
        inside: from the first entry to all of the window, [C, rows * columns].
    """

    corner: Tensor
    side: Tensor
    inside: Tensor

    def select(self, index: Tensor) -> "_Proposals":
        return _Proposals(self.corner[index], self.side[index], self.inside)

    def entries(self, number: Tensor) -> tuple[Tensor, Tensor]:
        """Return which entries proposals number [B, L] paint and where in (lowest, highest) their paint is, [B, L, n]."""
        number = number.clamp_max(self.corner.shape[1] - 1)
        place = self.corner.gather(1, number)[:, :, None, None] + self.inside
        side = self.side.gather(1, number[:, :, None].expand(-1, -1, len(self.inside)))
        return place.flatten(2), (place + side[..., None]).flatten(2)


def _drawn(count: int, batch: int, images: Tensor, size: tuple[int, int], source: torch.Generator) -> _Proposals:
    channels, height, width = images.shape[1:]
    down, across = (
        (uniform((count, batch), source, images, batch_axis=1) * room).long().clamp_max(room - 1).t()
        for room in (height - size[0] + 1, width - size[1] + 1)
    )
    high = uniform((count, batch, channels), source, images, batch_axis=1) >= 0.5
    rows, columns = (torch.arange(length, device=images.device) for length in size)
    first = height * width * torch.arange(channels, device=images.device)
    inside = first[:, None] + (rows[:, None] * width + columns).flatten()
    return _Proposals(
        (down * width + across).contiguous(),
        (high.transpose(0, 1) * (channels * height * width)).contiguous(),
        inside,
    )


@dataclass(eq=False)
class _Climb:
    """The search of those samples that are left.

    Attributes:
        oracle, goal: what is climbed.
        shape: the shape of inputs.
        index: which samples are left, [B].
        sides: lowest and highest values, [B, 2 N].
        best, value: points [B, N] of largest loss, and that loss [B].
        found: points of all samples, those of who has left.
        rising: share of the rows run that were better than what was known, a running mean.
        changing: share of the proposals that change anything, a running mean.
        patches: what the model makes of some points, for one that windows can be followed through.
        known: that of the best points, while windows are followed.
    """

    oracle: Oracle
    goal: Goal
    shape: torch.Size
    index: Tensor
    sides: Tensor
    best: Tensor
    value: Tensor
    found: Tensor
    rising: float = 1.0
    changing: float = 1.0
    patches: Known | None = None
    known: Known | None = None

    def leave(self, gone: Tensor) -> Tensor:
        """Take the samples ``gone`` [B] out, and return the places of the others."""
        stay = (~gone).nonzero()[:, 0]
        if len(stay) < len(gone):
            self.found[self.index[gone]] = self.best[gone]
            self.index, self.sides, self.goal = self.index[stay], self.sides[stay], self.goal.select(stay)
            self.best, self.value = self.best[stay], self.value[stay]
            if self.known is not None:
                self.known.select(stay)
        return stay

    def chapter(self, proposals: _Proposals, size: tuple[int, int]) -> None:
        """Try all proposals of each sample, in their order; their windows have ``size`` rows and columns."""
        count, tried = proposals.corner.shape[1], torch.zeros_like(self.index)
        following = self._compiled if jit.reads(self.best) else self._plain
        self.known = known = self._known(size)
        while len(tried) and int(tried.min()) < count:
            who, number, z = following(proposals, tried)
            if not len(who):
                continue
            if known is None:
                fresh, missed = self._judged(z, who)
            else:
                logits = self._patched(known, proposals, size, who, number, z)
                fresh, missed = judged(self.oracle, self.goal.select(who), logits)
            good = ((fresh > self.value[who]) | missed).nonzero()[:, 0]
            self.rising += 0.1 * (max(len(good) / len(who), 0.001) - self.rising)
            if not len(good):
                continue
            owner = who[good]
            first = torch.ones_like(good, dtype=torch.bool)
            first[1:] = owner[1:] != owner[:-1]
            good, owner = good[first], owner[first]
            if known is not None:
                known.settle(good)
                doubtful = good[missed[good]]
                if len(doubtful):  # a whole pass has the last word
                    missed[doubtful] = self._judged(z[doubtful], who[doubtful])[1]
            self.best[owner], self.value[owner] = z[good], fresh[good]
            tried[owner] = number[good] + 1
            if missed[good].any():
                gone = torch.zeros_like(self.index, dtype=torch.bool)
                gone[owner[missed[good]]] = True
                stay = self.leave(gone)
                tried, proposals = tried[stay], proposals.select(stay)

    def _judged(self, z: Tensor, who: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.oracle.logits(z.view(-1, *self.shape[1:]), self.index[who], self.oracle.eot)
        return judged(self.oracle, self.goal.select(who), logits)

    def _known(self, size: tuple[int, int]) -> Known | None:
        """Return what the model makes of the best points, where that spares most of the work on windows of some size."""
        if self.patches is None:
            return None
        self.patches.look(self.best.view(-1, *self.shape[1:]))
        self.oracle.spend(self.index)
        return self.patches if self.patches.share(size) + self.rising < _WORTHWHILE else None

    def _patched(
        self, known: Known, proposals: _Proposals, size: tuple[int, int], who: Tensor, number: Tensor, z: Tensor
    ) -> Tensor:
        """Return the logits [1, R, K] of points z [R, N] that differ from best ones by proposals."""
        self.oracle.spend(self.index[who])
        corner = proposals.corner[who, number]
        window = z.gather(1, corner[:, None] + proposals.inside.flatten()).view(len(z), -1, *size)
        width = self.shape[-1]
        return known.logits(window, torch.stack([corner // width, corner % width], 1), who)[None]

    def _depth(self) -> int:
        """Return how many proposals of a sample to try together, those behind an accepted one being in vain."""
        if self.oracle.randomised:
            return 1
        overhead = _OVERHEAD if self.known is None else _OVERHEAD_OF_PATCHES
        wanted = math.sqrt(2 * overhead / (len(self.index) * self.rising))
        return max(1, min(_PASS // len(self.index), int(wanted)))

    def _compiled(self, proposals: _Proposals, tried: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`_plain`, in one compiled loop."""
        from stalwart.attacks import square_kernels as kernels

        depth, (batch, entries) = self._depth(), self.best.shape
        number = torch.full((batch * depth,), -1)
        z = self.best.new_empty(batch * depth, entries)
        sizes = (entries, *proposals.side.shape[1:], proposals.inside.shape[1], depth, self.oracle.randomised)
        inputs = (proposals.inside, proposals.corner, proposals.side, self.sides, self.best)
        jit.run(kernels.following, batch, *sizes, *inputs, tried, number, z)
        some = (number >= 0).nonzero()[:, 0]
        if len(some) < len(number):
            number, z = number[some], z[some]
        return some // depth, number, z

    def _plain(self, proposals: _Proposals, tried: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the next points to look at [R, N], whose they are and which proposals, [R], and move ``tried`` [B] on.

        Those of one sample follow each other, as many as :meth:`_depth` says, fewer towards the end.
        """
        depth, count = self._depth(), proposals.corner.shape[1]
        sure = self.oracle.randomised or self.changing >= 0.9
        ahead = min(_AHEAD, depth if sure else int(depth / self.changing) + 1, count)
        number = tried[:, None] + torch.arange(ahead, device=tried.device)
        place, where = proposals.entries(number)
        paint = self.sides.gather(1, where.flatten(1)).view(place.shape)
        new = number < count
        if not self.oracle.randomised:
            # A proposal that changes nothing has a known answer.
            changed = (paint != self.best.gather(1, place.flatten(1)).view(place.shape)).any(2)
            self.changing += 0.1 * (max(float(changed.float().mean()), 0.01) - self.changing)
            new &= changed
        rank = new.cumsum(1)
        tried += (rank <= depth).sum(1)
        who, which = (new & (rank <= depth)).nonzero().unbind(1)
        z = self.best[who].scatter_(1, place[who, which], paint[who, which])
        return who, number[who, which], z
