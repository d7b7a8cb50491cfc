"""``stalwart claim``: a RobustBench-style record of one evaluated run."""

from pathlib import Path

from stalwart.core.errors import FileError, UsageError
from stalwart.core.files import write_json
from stalwart.report import Report
from stalwart.report.claim import claim


def write_claim(folder: Path, told: list[str], out: Path | None) -> str:
    """Write the claim of an evaluated run and say what it claims.

    Args:
        folder: of the run.
        told: fields that its authors fill, each ``key=value``.
        out: the file; by default ``claim.json`` in the folder.

    Raises:
        FileError: there is no report, or the file cannot be written.
        InputError: the report has no AutoAttack.
        UsageError: a field that cannot be told, or a report of several runs.
    """
    if folder.is_dir() and not (folder / "report.json").exists():
        raise FileError(f"{folder} has no report.json; run `stalwart evaluate {folder} --suite autoattack` first.")
    report = Report.load(folder)
    if len(report.runs) != 1:
        raise UsageError(f"{folder} holds a report of {len(report.runs)} runs; name the folder of one of them.")
    pairs = {}
    for word in told:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"'{word}' is not a field of a claim; write it as venue='ICLR 2027'.")
        pairs[key] = value
    found = claim(report.runs[0], pairs)
    path = out or (folder if folder.is_dir() else folder.parent) / "claim.json"
    write_json(path, found)
    empty = [key for key, value in found.items() if value == "" and key != "reported"]
    missing = f"\nempty, for its authors to tell: {', '.join(empty)}" if empty else ""
    doubt = f"  unreliable: {', '.join(found['stalwart']['flags'])}" if found["unreliable"] else ""
    return (
        f"{report.runs[0].name}  clean {found['clean_acc']} %  AutoAttack {found['autoattack_acc']} % at "
        f"{found['stalwart']['threat']}{doubt}\nclaim: {path}{missing}"
    )
