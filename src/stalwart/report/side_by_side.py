"""Evaluated runs from their folders, side by side in one report, and compared input by input."""

from collections.abc import Sequence
from pathlib import Path

from stalwart.core.errors import FileError, InputError
from stalwart.core.files import read_bytes
from stalwart.evaluation import Samples
from stalwart.report.differences import Judged, compare
from stalwart.report.schema import Report


def side_by_side(folders: Sequence[Path], title: str) -> Report:
    """Load evaluated runs, put them side by side, and compare those that were evaluated alike.

    Args:
        folders: of runs, each with ``report.json`` and, to be compared, ``samples.csv`` beside it; or report files.
        title: the headline of the page.

    Raises:
        FileError: a report or a table is missing or damaged, or a table is not the one of its report.
        UsageError: no folders.
    """
    reports = [Report.load(folder) for folder in folders]
    combined = Report.combine(reports, title)
    tables: list[Samples | None] = []
    for folder, report in zip(folders, reports, strict=True):
        # A report of several runs has no table that would tell them apart.
        tables += [_table(folder)] if len(report.runs) == 1 else [None] * len(report.runs)
    judged = [
        Judged(run.name, run.evaluation, run.recipe, samples)
        for run, samples in zip(combined.runs, tables, strict=True)
    ]
    try:
        differences, seeds = compare(judged)
    except (InputError, ValueError) as problem:
        raise FileError(str(problem)) from None
    return combined.model_copy(update={"differences": differences, "seeds": seeds})


def _table(folder: Path) -> Samples | None:
    path = (folder if folder.is_dir() else folder.parent) / "samples.csv"
    if not path.exists():
        return None
    try:
        return Samples.parse(read_bytes(path, "the per-sample table").decode())
    except ValueError as problem:
        raise FileError(f"{path} is damaged ({problem}); evaluate the run again.") from None
