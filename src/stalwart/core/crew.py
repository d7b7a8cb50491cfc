"""Many chips, or parts of a batch, at once: one thread for each, with a copy of the model of its own.

Threads that share every operation wait for each other at its end, some twenty times a forward pass; these have nothing to
wait for. One core's batch then also stays in that core's cache.
"""

import contextlib
import contextvars
import functools
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch import Tensor, nn

from stalwart.core.quick import lean_copy

_FEW = 4
"""Threads up to which parts of one batch keep each of them busy."""
_workers: contextvars.ContextVar[int] = contextvars.ContextVar("stalwart_workers", default=1)
_failed: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("stalwart_failed", default=None)

Job = TypeVar("Job")
Result = TypeVar("Result")


def crew(model: nn.Module, x: Tensor, jobs: int) -> list[nn.Module]:
    """Return models that may each work in a thread of its own: copies, or the model itself alone where copies could differ.

    That is: where the model or its input is not on the CPU, has hooks, is compiled, draws from torch's global generator
    (whose order threads would decide), or cannot be copied.

    Args:
        model: in evaluation mode.
        x: a few inputs [B, ...] for one pass.
        jobs: how many there are; with fewer than threads, one copy takes them in turn.
    """
    if not is_plain(model, x):
        return [model]
    threads = torch.get_num_threads()
    try:
        copies = [lean_copy(model) for _ in range(threads if jobs >= threads else 1)]
    except Exception:  # a module's own way of being copied may raise anything
        return [model]
    return copies if leaves_generator(copies[0], x) else [model]


def in_order(
    work: Callable[[nn.Module, Job], Result], models: list[nn.Module], jobs: Iterable[Job]
) -> Generator[Result, None, None]:
    """Yield ``work(model, job)`` for each job, in order; several models work at once, each in one thread of one core.

    Close the iterator when leaving early: threads then end after what they are at.
    """
    if len(models) == 1:
        yield from (work(models[0], job) for job in jobs)
        return
    idle: queue.SimpleQueue[nn.Module] = queue.SimpleQueue()
    for model in models:
        idle.put(model)

    def run(job: Job) -> Result:
        model = idle.get()
        try:
            return work(model, job)
        finally:
            idle.put(model)

    threads = torch.get_num_threads()
    # Each thread has a number of its own for this; what torch keeps besides is the number that further threads begin with.
    pool = ThreadPoolExecutor(len(models), initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(contextvars.copy_context().run, run, job))
            if len(waiting) > 2 * len(models):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Let every operation inside the block run in one thread, and :func:`side_by_side` use torch's threads instead.

    With more threads than parts of a batch are worth nothing changes. The number is set once for a block: a change
    ends the threads that share operations, and starting them again takes longer than a pass of a small network.
    """
    threads = torch.get_num_threads()
    if not 1 < threads <= _FEW:
        yield
        return
    token = _workers.set(threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _workers.reset(token)


def side_by_side(work: Callable[[Job], Result], jobs: Sequence[Job]) -> list[Result]:
    """Return ``work(job)`` of each job, in order; inside :func:`one_thread_each` in as many threads as torch had.

    Work that calls this function in turn has its jobs done one after the other, in its own thread, and finds that it
    :func:`is_one_of_many`. Once a job has failed, or the caller is interrupted, the others end at their next :func:`go_on`.
    """
    workers = _workers.get()
    if len(jobs) == 1:
        return [work(jobs[0])]
    failed = threading.Event()

    def alone(job: Job) -> Result:
        _workers.set(1)
        _failed.set(failed)
        try:
            return work(job)
        except BaseException:
            failed.set()
            raise

    if workers == 1:
        return [contextvars.copy_context().run(alone, job) for job in jobs]

    pool = _pool(os.getpid(), workers)
    waiting = [pool.submit(contextvars.copy_context().run, alone, job) for job in jobs[1:]]
    try:
        first = [contextvars.copy_context().run(alone, jobs[0])]
    except _GivenUpError:
        first = []  # the one that failed is among the others
    finally:
        wait(waiting)
    errors = [one.exception() for one in waiting]
    for error in errors:
        if error is not None and not isinstance(error, _GivenUpError):
            raise error
    return [*first, *(one.result() for one in waiting)]


def is_one_of_many() -> bool:
    """Tell whether this is one job of several of :func:`side_by_side`, whatever the number of threads."""
    return _failed.get() is not None


def go_on() -> None:
    """End this job where another one of the same :func:`side_by_side` has failed; long work calls it now and then."""
    failed = _failed.get()
    if failed is not None and failed.is_set():
        raise _GivenUpError


class _GivenUpError(Exception):
    """A job whose result nobody waits for any more."""


@functools.cache
def _pool(process: int, workers: int) -> ThreadPoolExecutor:
    # A process that was forked has none of its parent's threads, hence the first argument.
    return ThreadPoolExecutor(workers - 1, "stalwart", torch.set_num_threads, (1,))


def is_plain(model: nn.Module, x: Tensor) -> bool:
    """Tell whether model and input are on the CPU, in full precision, and the model has no hooks and is not compiled."""
    tensors = (x, *model.parameters(), *model.buffers())
    if any(tensor.device.type != "cpu" for tensor in tensors) or torch.is_autocast_enabled("cpu"):
        return False
    return not any(
        module._forward_hooks
        or module._forward_pre_hooks
        or isinstance(module, torch.jit.ScriptModule)
        or hasattr(module, "_orig_mod")
        for module in model.modules()
    )


@torch.no_grad()
def leaves_generator(model: nn.Module, x: Tensor) -> bool:
    """Tell whether a pass leaves torch's global generator as it is."""
    before = torch.get_rng_state()
    model(x.clone())
    same = torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    return same
