"""`stalwart sweep`, and `stalwart evaluate` in several processes."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from stalwart.core.files import require_writable
from stalwart.core.workers import Workers, workers
from stalwart.evaluation.blocks import Work, one_by_one
from stalwart.recipes.runs import Source, pick_device
from stalwart.recipes.schema import EvaluationSection
from stalwart.recipes.sharing import ForeignAt, Job, RunAt, shared_by
from stalwart.recipes.sweeping import combinations, sweep
from stalwart.report import Report, side_by_side


@contextlib.contextmanager
def crew(
    count: int | None, address: str | None, at: RunAt | ForeignAt, section: EvaluationSection, seed: int, device: str
) -> Iterator[Work]:
    """Start the processes that are asked for and give what attacks blocks in them; by default this process alone.

    All compute with as many threads as one of them, this process too, since sums are rounded by how threads share them.
    """
    if address is None and (count is None or count == 1):
        yield one_by_one
        return
    with _start(count, address) as running:

        def job(fingerprint: str) -> Job:
            size = section.batch_size
            return Job(at, section.samples, section.norm, section.eps, seed, size, device, fingerprint)

        yield shared_by(running, job)


def sweep_recipe(
    recipe: str,
    over: Sequence[str],
    overrides: Sequence[str],
    out: Path | None,
    source: Source,
    count: int | None,
    address: str | None,
    device: str | None,
) -> tuple[Report | None, Path, list[str]]:
    """Run a sweep and print its runs as they finish; return their report, where it is, and a line for each that failed."""
    folder = out or Path("runs") / f"{Path(recipe).stem}-sweep"
    runs = combinations(recipe, over, overrides, folder.absolute())
    chosen = pick_device(device)
    require_writable(folder)
    width, failed = max(len(one.name) for one in runs), []
    done = sum(one.finished for one in runs)
    if done:
        print(f"{done} of {len(runs)} runs are finished already")
    with _start(count, address) as running:
        for one, outcome in sweep(runs, source, running, chosen):
            done += 1
            error = outcome.error
            if not error and not one.finished:
                error = f"{one.folder} is not seen from here; let --out be a folder that all machines share."
            if error:
                failed.append(f"{one.name}: {error}")
                said = "failed"
            else:
                said = f"clean {outcome.clean:6.1%}  worst {outcome.worst:6.1%}"
            print(f"{done:>{len(str(len(runs)))}}/{len(runs)}  {one.name:<{width}}  {said}", flush=True)
    finished = [one.folder for one in runs if one.finished]
    if not finished:
        return None, folder, failed
    combined = side_by_side(finished, f"Sweep of {recipe}")
    combined.save(folder)
    return combined, folder, failed


def _start(count: int | None, address: str | None) -> Workers:
    """Return processes that share this machine's threads, or a cluster's tasks of one thread each."""
    threads = 1 if address is not None else max(1, torch.get_num_threads() // (count or 1))
    torch.set_num_threads(threads)
    return workers(count, address, threads)
