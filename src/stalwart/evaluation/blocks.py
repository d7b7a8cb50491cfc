"""Blocks: the pieces in which an evaluation attacks, keeps what was found, and shares work among processes.

A block is one attack at one radius on a few inputs. Its borders and its seed follow from the inputs alone, not from who
attacks it or when, so that one process, several, and an evaluation that was killed and goes on find the same points.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.attacks import AttackResult
from stalwart.attacks.base import Cost
from stalwart.attacks.guard import undisturbed
from stalwart.attacks.layout import fitting_batch
from stalwart.core.numbers import require
from stalwart.core.random import derive
from stalwart.core.tensors import fingerprint
from stalwart.evaluation.suites import Entry
from stalwart.sets import ThreatSet


@dataclass(frozen=True, eq=False)
class Block:
    """One attack at one radius on a few inputs.

    Attributes:
        entry: the attack.
        eps: radius, in data units.
        number: of the block among those of this attack and radius, from 0.
        index: which inputs.
    """

    entry: Entry
    eps: float
    number: int
    index: tuple[int, ...]

    @property
    def name(self) -> str:
        """What files and messages call it."""
        return f"{self.entry.name}@{self.eps:g}.{self.number}"

    @property
    def key(self) -> str:
        """All that tells it from other blocks, as text that is the same in every process."""
        return f"{self.entry.attack} {readable(self.entry.options)} {self.eps!r} {self.number} {self.index}"


@dataclass(frozen=True, eq=False)
class Found:
    """What the attack on one block found, and the seconds that it took."""

    result: AttackResult
    seconds: float


@dataclass(frozen=True, eq=False)
class Subject:
    """All that decides what an attack finds.

    Attributes:
        model: maps [B, ...] to logits [B, K].
        x: inputs [N, ...] in data units.
        y: labels [N].
        within: the threat set, with one radius for all samples.
        seed: root of all randomness.
        batch_size: inputs in a block; by default as many as attacks on this model would take together.
        origin: the network that the model was converted from, if it is at hand.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    within: ThreatSet
    seed: int
    batch_size: int | None = None
    origin: nn.Module | None = None

    def __post_init__(self) -> None:
        size = self.batch_size
        require(size is None or size >= 1, f"the batch size must be at least 1, got {size}.")

    @cached_property
    def rows(self) -> int:
        """How many inputs a block has, the last one perhaps fewer."""
        if self.batch_size is not None:
            return self.batch_size
        with undisturbed(self.model, self.seed):
            return fitting_batch(self.model, self.x)

    @cached_property
    def fingerprint(self) -> str:
        """A digest that processes and evaluations with the same subject share."""
        threat, seed = self.within.describe(), str(self.seed)
        own = fingerprint(self.model, self.x, self.y, threat, seed, str(self.rows), str(torch.__version__))
        return own if self.origin is None else fingerprint(self.origin, own)

    def blocks(self, entry: Entry, eps: float, left: Tensor) -> list[Block]:
        """Share the inputs that are left, [N] bool, out in blocks."""
        parts = left.nonzero()[:, 0].split(self.rows)
        return [Block(entry, eps, number, tuple(part.tolist())) for number, part in enumerate(parts) if len(part)]

    def attack(self, block: Block) -> Found:
        """Attack one block."""
        begun = time.monotonic()
        index = torch.tensor(block.index, device=self.x.device)
        # The first block draws what an attack on all inputs at once would.
        path = [block.number] if block.number else []
        seed = derive(self.seed, block.entry.name, block.eps, *path)
        run, within = block.entry.build(self.origin), self.within.with_eps(block.eps)
        result = run(self.model, self.x[index], self.y[index], within=within, seed=seed, batch_size=self.rows)
        return Found(result, time.monotonic() - begun)

    def merge(self, found: Sequence[tuple[Block, Found]]) -> Found:
        """Put blocks together; inputs that are in none stay as they are, count as broken already, and cost nothing."""
        x, count = self.x, len(self.x)
        x_adv, success = x.clone(), torch.ones(count, dtype=torch.bool, device=x.device)
        margin, distance = torch.zeros(count, dtype=x.dtype, device=x.device), None
        forwards = torch.zeros(count, dtype=torch.long, device=x.device)
        backwards = forwards.clone()
        for block, one in found:
            at, part = torch.tensor(block.index, device=x.device), one.result
            x_adv[at], success[at], margin[at] = part.x_adv, part.success, part.margin.to(margin)
            forwards[at], backwards[at] = part.cost.forwards.to(forwards), part.cost.backwards.to(backwards)
            if part.distance is not None:
                if distance is None:
                    distance = torch.full((count,), torch.nan, dtype=part.distance.dtype, device=x.device)
                distance[at] = part.distance
        if distance is not None and distance.isnan().any():
            distance = None  # a median over the inputs that were left says nothing of all
        seconds = sum((one.seconds for _, one in found), 0.0)
        return Found(AttackResult(x_adv, success, margin, Cost(forwards, backwards), distance), seconds)


Work = Callable[[Subject, Sequence[Block]], Iterator[tuple[Block, Found]]]
"""Attacks blocks of a subject, and yields each with what was found as it is done, in any order."""


def one_by_one(subject: Subject, blocks: Sequence[Block]) -> Iterator[tuple[Block, Found]]:
    """Attack blocks in this process, in order."""
    for block in blocks:
        yield block, subject.attack(block)


def pack(found: Found) -> tuple[dict[str, Tensor], float]:
    """Return what was found as tensors on the CPU by name, and the seconds."""
    result = found.result
    tensors = {"x_adv": result.x_adv, "success": result.success, "margin": result.margin}
    tensors |= {"forwards": result.cost.forwards, "backwards": result.cost.backwards}
    if result.distance is not None:
        tensors["distance"] = result.distance
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, found.seconds


def unpack(tensors: Mapping[str, Tensor], seconds: float, device: torch.device) -> Found:
    """Undo :func:`pack`.

    Raises:
        KeyError: a tensor is missing.
    """
    here = {name: tensor.to(device) for name, tensor in tensors.items()}
    cost = Cost(here["forwards"], here["backwards"])
    return Found(AttackResult(here["x_adv"], here["success"], here["margin"], cost, here.get("distance")), seconds)


def readable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the names of functions in their place, such as that of a foreign attack."""
    return {
        key: getattr(value, "__name__", type(value).__name__) if callable(value) else value
        for key, value in options.items()
    }
