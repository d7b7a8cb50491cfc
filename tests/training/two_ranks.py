"""One of two processes that train a list of recipes in turn: ``python two_ranks.py RANK JOBS``.

JOBS is a JSON list of [words of ``stalwart train``, output folder, free port]. What rank r says of a run goes to
``<folder>.<r>.out`` and ``.err``, and its exit code and the group's threads that it left behind to ``<folder>.<r>.json``.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

from stalwart.cli.main import run


def main(rank: str, jobs: str) -> None:
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    for words, folder, port in json.loads(jobs):
        os.environ["MASTER_PORT"] = str(port)
        with (
            Path(f"{folder}.{rank}.out").open("w") as out,
            Path(f"{folder}.{rank}.err").open("w") as err,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                run(["--system-malloc", "--threads", "1", "train", *words, "--out", folder, "--device", "cpu"])
            except SystemExit as left:
                code = left.code or 0
        Path(f"{folder}.{rank}.json").write_text(json.dumps({"code": code, "threads": threads()}))


def threads() -> list[str]:
    """Return the names of this process's threads that belong to a group; none where the system does not tell."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name or "tcpstore" in name]


main(*sys.argv[1:])
