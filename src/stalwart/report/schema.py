"""The report as a record: what ``report.json`` holds, how it is saved, read back and put beside others."""

import datetime
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic

from stalwart.core.errors import FileError, UsageError
from stalwart.core.files import atomic, read_json
from stalwart.evaluation.corruptions import CorruptionsResult
from stalwart.evaluation.hardware import HardwareResult
from stalwart.evaluation.results import Evaluation, Record
from stalwart.report.certificates import Certificates
from stalwart.report.conversion import Conversion
from stalwart.report.differences import Difference, SeedGroup
from stalwart.report.spikes import Spikes

SCHEMA_VERSION = 1
_JSON, _PAGE = "report.json", "index.html"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _iso(text: str) -> str:
    datetime.datetime.fromisoformat(text)
    return text


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON has not, by None: a diverged epoch must not cost the whole report."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class RunReport(Record):
    """One run: its evaluation and, where they are known, its training curves, recipe and environment.

    Args:
        name: what the report calls the run.
        evaluation: the result of ``evaluate``.
        training: the lines of ``metrics.jsonl``, one an epoch; values that are not finite become None.
        recipe: the complete recipe, with the seed.
        environment: what :func:`stalwart.report.environment` returned where the run was evaluated.
        certificates: what is proven of the run; None where nothing was tried.
        spikes: what its neurons do; None where it has none.
        hardware: what imperfect processors leave of it; None where that was not measured.
        conversion: what was done to the network that it was converted from; None where it was not.
        corruptions: what common corruptions leave of it; None where that was not measured.
    """

    name: str
    evaluation: Evaluation
    training: Annotated[list[dict[str, Any]], pydantic.BeforeValidator(_finite)] = pydantic.Field(default_factory=list)
    recipe: Annotated[dict[str, Any] | None, pydantic.BeforeValidator(_finite)] = None
    environment: dict[str, str] = pydantic.Field(default_factory=dict)
    certificates: Certificates | None = None
    spikes: Spikes | None = None
    hardware: HardwareResult | None = None
    conversion: Conversion | None = None
    corruptions: CorruptionsResult | None = None

    @pydantic.field_validator("evaluation")
    @classmethod
    def _pictures_unpack(cls, evaluation: Evaluation) -> Evaluation:
        for picture in evaluation.pictures:
            picture.unpack("clean")
            picture.unpack("adversarial")
        return evaluation


class Report(Record):
    """One or many runs, side by side.

    Args:
        schema_version: the version of this record; a reader refuses newer ones.
        created: ISO 8601 date and time.
        title: the headline of the page.
        runs: at least one run, in the order in which the page shows them.
        differences: runs that were evaluated alike, two by two on the same inputs.
        seeds: runs of one recipe that differ in their seed alone.
    """

    schema_version: int = SCHEMA_VERSION
    created: Annotated[str, pydantic.AfterValidator(_iso)] = pydantic.Field(default_factory=_now)
    title: str = "Robustness report"
    runs: Annotated[list[RunReport], pydantic.Field(min_length=1)]
    differences: list[Difference] = pydantic.Field(default_factory=list)
    seeds: list[SeedGroup] = pydantic.Field(default_factory=list)

    def save(self, folder: Path | str) -> Path:
        """Write ``report.json`` and ``index.html`` into ``folder`` and return the folder.

        Both are complete on disk before either replaces an older file.

        Raises:
            FileError: the folder cannot be written or the disk is full; older files are left as they were.
        """
        # matplotlib takes a second to import, and only a page that is written needs it.
        from stalwart.report.html import render

        folder = Path(folder)
        text = json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"
        page = render(self)
        for name in (_JSON, _PAGE):
            if (folder / name).is_dir():
                raise FileError(f"cannot write {folder / name}: it is a folder. Choose another output folder.")
        with atomic(folder / _PAGE) as html, atomic(folder / _JSON) as record:
            for stream, content in ((html, page), (record, text)):
                stream.write(content.encode())
                stream.flush()
                os.fsync(stream.fileno())
        return folder

    @classmethod
    def load(cls, path: Path | str) -> "Report":
        """Read a report back from ``report.json`` or from the folder that holds it.

        Raises:
            FileError: it is missing, not JSON, written by a newer version, or not a report.
        """
        path = Path(path)
        if path.is_dir():
            path = path / _JSON
        value = read_json(path, "the report")
        version = value.get("schema_version") if isinstance(value, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise FileError(
                f"the report {path} has schema version {version}, but this stalwart reads up to {SCHEMA_VERSION}; "
                "install a newer stalwart."
            )
        try:
            return cls.model_validate(value)
        except pydantic.ValidationError as problem:
            first = problem.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the top level"
            raise FileError(
                f"{path} is JSON but not a stalwart report: {first['msg']} at {where}. Restore it, or evaluate again."
            ) from None

    @classmethod
    def combine(cls, reports: Sequence["Report"], title: str) -> "Report":
        """Put the runs of several reports side by side, in order; a repeated name gets a suffix such as `` (2)``.

        Raises:
            UsageError: there are no reports.
        """
        if not reports:
            raise UsageError("there is no report to combine; give at least one.")
        taken: set[str] = set()
        runs = []
        for run in (run for report in reports for run in report.runs):
            name, count = run.name, 1
            while name in taken:
                count += 1
                name = f"{run.name} ({count})"
            taken.add(name)
            runs.append(run.model_copy(update={"name": name}))
        return cls(title=title, runs=runs)
