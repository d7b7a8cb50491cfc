"""Work shared among processes: those of this machine, or those of a Ray cluster. What a lost process was at is done again."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from stalwart.core.errors import StalwartError, UsageError
from stalwart.core.numbers import require

Shard = TypeVar("Shard")
Result = TypeVar("Result")

TRIES = 3
"""How often a shard is begun whose process is lost each time."""


class LostShardError(StalwartError, RuntimeError):
    """A shard whose process was lost at every try."""


@runtime_checkable
class Workers(Protocol):
    """Processes that work side by side; a context that starts and ends them."""

    def __enter__(self) -> "Workers":
        """Start."""

    def __exit__(self, *problem: object) -> None:
        """End all processes."""

    def map_shards(
        self, function: Callable[[Shard], Result], shards: Sequence[Shard]
    ) -> Iterator[tuple[int, Result | LostShardError]]:
        """Yield the number of each shard and ``function(shard)`` as they are done, in any order.

        The function, shards and results are pickled, between our own processes alone. An exception of the function is raised
        here. A shard whose process is lost is done again, twice at most; then a LostShardError stands for its result.
        """


class LocalWorkers:
    """Processes of this machine.

    Args:
        count: how many.
        threads: CPU threads of torch in each.

    Raises:
        UsageError: a count or a number of threads below 1.
    """

    def __init__(self, count: int, threads: int = 1) -> None:
        require(count >= 1, f"the number of workers must be at least 1, got {count}.")
        require(threads >= 1, f"the number of threads must be at least 1, got {threads}.")
        self.count, self.threads = count, threads
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "LocalWorkers":
        """Start nothing yet: processes start with the first shards."""
        return self

    def __exit__(self, *problem: object) -> None:
        """End all processes, also those that are at work."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        for process in processes:
            process.join()

    def map_shards(
        self, function: Callable[[Shard], Result], shards: Sequence[Shard]
    ) -> Iterator[tuple[int, Result | LostShardError]]:
        """Yield results as :class:`Workers` says."""
        waiting, losses = list(range(len(shards))), [0] * len(shards)
        at_work: dict[Future[Result], int] = {}
        while waiting or at_work:
            # No more than there are processes, so that a lost process tells which few shards it can have been at.
            while waiting and len(at_work) < self.count:
                try:
                    future = self._running().submit(function, shards[waiting[0]])
                except BrokenProcessPool:
                    if at_work:
                        break
                    self.__exit__()  # a process was lost while all were idle
                else:
                    at_work[future] = waiting.pop(0)
            done = wait(at_work, return_when=FIRST_COMPLETED).done
            if any(map(_is_lost, done)):
                done = wait(at_work).done  # one lost process ends them all
                self.__exit__()
            for future in done:
                number = at_work.pop(future)
                if not _is_lost(future):
                    yield number, future.result()
                    continue
                losses[number] += 1
                if losses[number] < TRIES:
                    waiting.insert(0, number)
                else:
                    yield number, _lost(number, shards[number])

    def _running(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads, which do not fork
            self._pool = ProcessPoolExecutor(self.count, context, _begin, (self.threads,))
        return self._pool


class RayWorkers:
    """Processes of a Ray cluster, each task on as many of its CPUs as it has threads.

    Args:
        address: of the cluster, such as "auto", "10.0.0.1:6379" or "ray://10.0.0.1:10001"; "local" starts one on this machine.
        threads: CPU threads of torch in each task.
        count: tasks at once; by default as many as the cluster has CPUs for. A cluster that "local" starts has this many
            times ``threads`` CPUs.

    Raises:
        UsageError: a count or a number of threads below 1; on entering, Ray is not installed, or there is no cluster.
    """

    def __init__(self, address: str, threads: int = 1, count: int | None = None) -> None:
        require(count is None or count >= 1, f"the number of workers must be at least 1, got {count}.")
        require(threads >= 1, f"the number of threads must be at least 1, got {threads}.")
        self.address, self.threads, self.count = address, threads, count

    def __enter__(self) -> "RayWorkers":
        """Join the cluster."""
        ray = _ray()
        local = self.address == "local"
        cpus = self.count * self.threads if local and self.count is not None else None
        more: dict[str, Any] = {"num_cpus": cpus, "include_dashboard": False} if local else {}
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", **more)
        except (ConnectionError, RuntimeError, ValueError) as problem:
            said = (str(problem).splitlines() or ["no answer"])[0]
            raise UsageError(f"cannot join a Ray cluster at --address '{self.address}': {said}") from None
        return self

    def __exit__(self, *problem: object) -> None:
        """Leave the cluster, and end one that was started here."""
        _ray().shutdown()

    def map_shards(
        self, function: Callable[[Shard], Result], shards: Sequence[Shard]
    ) -> Iterator[tuple[int, Result | LostShardError]]:
        """Yield results as :class:`Workers` says."""
        ray = _ray()
        run = ray.remote(num_cpus=self.threads, max_retries=TRIES - 1)(_with_threads)
        waiting = list(range(len(shards)))
        at_work: dict[Any, int] = {}
        while waiting or at_work:
            while waiting and (self.count is None or len(at_work) < self.count):
                number = waiting.pop(0)
                at_work[run.remote(self.threads, function, shards[number])] = number
            (done, *_), _ = ray.wait(list(at_work), num_returns=1)
            number = at_work.pop(done)
            try:
                result = ray.get(done)
            except ray.exceptions.RayTaskError as problem:
                cause = problem.cause
                raise (cause if isinstance(cause, Exception) else problem) from None
            except ray.exceptions.RayError:
                yield number, _lost(number, shards[number])
            else:
                yield number, result


def workers(count: int | None, address: str | None, threads: int) -> Workers:
    """Return processes of the Ray cluster at an address, or without one those of this machine, by default one."""
    if address is None:
        return LocalWorkers(1 if count is None else count, threads)
    return RayWorkers(address, threads, count)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError("--address needs Ray, which is not installed: pip install 'stalwart[cluster]'.") from None
    return ray


def _is_lost(future: Future[Any]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


def _with_threads(threads: int, function: Callable[[Shard], Result], shard: Shard) -> Result:
    torch.set_num_threads(threads)
    return function(shard)


def _lost(number: int, shard: object) -> LostShardError:
    name = getattr(shard, "name", f"number {number}")
    return LostShardError(
        f"the process that worked on {name} was lost {TRIES} times, killed from outside or by the system for want of memory. "
        "Use fewer workers or a smaller batch size and run again; what is done is kept."
    )


def _begin(threads: int) -> None:
    """Prepare a process of this machine: few threads, deaf to Ctrl-C, which is its parent's, and gone when that is gone."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
