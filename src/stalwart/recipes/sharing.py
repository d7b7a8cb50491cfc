"""An evaluation shared among processes: each loads the model and the data itself and attacks blocks of inputs."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import nn

from stalwart.core.errors import FileError
from stalwart.core.registry import lookup
from stalwart.core.workers import LostShardError, Workers
from stalwart.data import Data
from stalwart.evaluation.blocks import Block, Found, Subject, Work, pack, unpack
from stalwart.recipes.foreign import foreign_model
from stalwart.recipes.judging import origin_of
from stalwart.recipes.runs import Source, load_run
from stalwart.sets.table import SETS


@dataclass(frozen=True)
class RunAt:
    """A run's model and data, to be loaded where they are needed.

    Attributes:
        folder: of the run; on a cluster every machine must see it.
        source: of the data.
    """

    folder: Path
    source: Source

    def load(self) -> tuple[nn.Module, Data, nn.Module | None]:
        """Return the model, its data, and the network that it was converted from, if there is one."""
        recipe, model, data = load_run(self.folder, self.source)
        return model, data, origin_of(recipe, self.folder, self.source)


@dataclass(frozen=True)
class ForeignAt:
    """A foreign model and its data.

    Attributes:
        path: ``pkg.module:factory``.
        weights: a safetensors file, or None.
        dataset: name, file or folder.
        source: of the data.
        beside: a folder that modules may be in, the current one of the first process.
    """

    path: str
    weights: Path | None
    dataset: str
    source: Source
    beside: Path

    def load(self) -> tuple[nn.Module, Data, nn.Module | None]:
        """Return the model and its data."""
        if str(self.beside) not in sys.path:
            sys.path.insert(0, str(self.beside))
        own = self.beside / self.dataset
        dataset = str(own) if own.exists() else self.dataset
        return foreign_model(self.path, self.weights), self.source.named(dataset), None


@dataclass(frozen=True)
class Job:
    """What a process needs to know to become a helper of an evaluation.

    Attributes:
        at: where the model and the data are.
        samples: the first so many test inputs, or all.
        norm: name of the threat set.
        eps: its radius.
        seed: root of all randomness.
        batch_size: inputs in a block; None for what suits the model.
        device: to compute on.
        fingerprint: of the first process's subject.
    """

    at: RunAt | ForeignAt
    samples: int | None
    norm: str
    eps: float
    seed: int
    batch_size: int | None
    device: str
    fingerprint: str

    def subject(self) -> Subject:
        """Load the model and the data.

        Raises:
            FileError: they are not those of the first process.
        """
        model, data, origin = self.at.load()
        test = data.test if self.samples is None else data.test.take(self.samples)
        x, y = test.to(self.device).batch(slice(None))
        within = lookup("threat set", SETS, self.norm)(self.eps)
        x, y = x.clamp(within.low, within.high), y.long()
        found = Subject(model.to(self.device), x, y, within, self.seed, self.batch_size, origin)
        if found.fingerprint != self.fingerprint:
            raise FileError(
                "a worker found another model, other data or another torch than the process that started it; let all machines "
                "see the same files and install the same versions."
            )
        return found


def shared_by(workers: Workers, job: Callable[[str], Job]) -> Work:
    """Return what attacks blocks with the help of other processes.

    Args:
        workers: the processes.
        job: makes the job from the fingerprint of the subject.
    """

    def work(subject: Subject, blocks: Sequence[Block]) -> Iterator[tuple[Block, Found]]:
        function = functools.partial(attack_block, job(subject.fingerprint))
        for number, answer in workers.map_shards(function, blocks):
            if isinstance(answer, LostShardError):
                raise answer
            tensors, seconds = answer
            yield blocks[number], unpack(safetensors.torch.load(tensors), seconds, subject.x.device)

    return work


def attack_block(job: Job, block: Block) -> tuple[bytes, float]:
    """Attack one block, in whatever process this is, and return what was found as bytes of safetensors, and seconds."""
    tensors, seconds = pack(_subject(job).attack(block))
    return safetensors.torch.save(tensors), seconds


@functools.lru_cache(maxsize=1)
def _subject(job: Job) -> Subject:
    return job.subject()
