"""Progress of long work: a bar on a terminal, a plain line now and then in a log, silence when not asked for."""

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_EVERY = 15.0


@runtime_checkable
class Advance(Protocol):
    """What long work calls: ``advance(done, note)`` with the share of work done so far, in steps."""

    def __call__(self, done: int, note: str = "") -> None:
        """Report that ``done`` steps are finished."""


def silent(done: int, note: str = "") -> None:
    """Report nothing: the default inside the library."""


@contextlib.contextmanager
def progress(title: str, total: int, enabled: bool = True) -> Iterator[Advance]:
    """Show the progress of ``total`` steps: a rich bar on a terminal, else a line at most every 15 seconds."""
    console = Console(stderr=True)
    if not enabled:
        yield silent
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True) as bar:
            task = bar.add_task(title, total=total, note="")

            def advance(done: int, note: str = "") -> None:
                bar.update(task, completed=done, note=note)

            yield advance
    else:
        last = time.monotonic()
        # Work that goes on where it was stopped begins with steps that took no time.
        first: tuple[float, int] | None = None

        def line(done: int, note: str = "") -> None:
            nonlocal last, first
            now = time.monotonic()
            began, before = first = first or (now, done)
            if now - last >= _LINE_EVERY:
                last = now
                left = (now - began) / max(1, done - before) * max(0, total - done) / 60
                forecast = f"about {left:.0f} min left" if left >= 1 else ""
                print("  ".join(one for one in (f"{title}: {done}/{total}", note, forecast) if one), flush=True)

        yield line
