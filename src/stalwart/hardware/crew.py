"""Many chips at once: one thread for each, with a copy of the model of its own.

Threads that share every operation wait for each other at its end, some twenty times a forward pass; chips have nothing to
wait for. One core's batch then also stays in that core's cache.
"""

import contextvars
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

from stalwart.core.quick import lean_copy

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
    if not _is_plain(model, x):
        return [model]
    threads = torch.get_num_threads()
    try:
        copies = [lean_copy(model) for _ in range(threads if jobs >= threads else 1)]
    except Exception:  # a module's own way of being copied may raise anything
        return [model]
    return copies if _leaves_generator(copies[0], x) else [model]


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


def _is_plain(model: nn.Module, x: Tensor) -> bool:
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
def _leaves_generator(model: nn.Module, x: Tensor) -> bool:
    before = torch.get_rng_state()
    model(x.clone())
    same = torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    return same
