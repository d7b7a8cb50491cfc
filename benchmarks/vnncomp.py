"""Run a VNN-COMP benchmark and hold every verdict against its ground truth.

    python benchmarks/vnncomp.py FOLDER --out results.csv [--limit 120] [--every 1] [--first 0] [--only TEXT]

FOLDER holds ``ground_truth.csv`` (columns onnx, vnnlib, timeout_s, verdict). Each instance gets the smaller of its own limit
and ``--limit`` seconds and leaves one line in the output, appended whole; run again, the script goes on after the last line.
A verdict against a checked counterexample, or a counterexample against a proof, is WRONG and makes the exit status 1.
"""

import argparse
import csv
import io
import os
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from stalwart.certify.verify import verify
from stalwart.core.errors import StalwartError

COLUMNS = (
    "onnx",
    "vnnlib",
    "limit",
    "truth",
    "strength",
    "status",
    "seconds",
    "cpu_seconds",
    "domains",
    "bound",
    "right",
)
ANSWER = {"verified": "unsat", "falsified": "sat"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=120.0)
    parser.add_argument("--every", type=int, default=1, help="take each n-th instance")
    parser.add_argument("--first", type=int, default=0, help="begin with this instance")
    parser.add_argument("--only", default="", help="take instances whose files' names hold this text")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    instances = list(csv.DictReader((options.folder / "ground_truth.csv").read_text().splitlines()))
    instances = [row for row in instances if options.only in f"{row['onnx']},{row['vnnlib']}"]
    done = resumed(options.out)
    for row in instances[options.first :: options.every]:
        if (row["onnx"], row["vnnlib"]) not in {(one["onnx"], one["vnnlib"]) for one in done}:
            done.append(settled(options.folder, row, min(float(row["timeout_s"]), options.limit)))
            append(options.out, done[-1])
            print(" ".join(str(done[-1][name]) for name in COLUMNS if name not in ("strength", "limit")), flush=True)
    return summary(done)


def settled(folder: Path, row: dict[str, str], limit: float) -> dict[str, str]:
    begun, cpu = time.monotonic(), time.process_time()
    try:
        found = verify(folder / row["onnx"], folder / row["vnnlib"], limit)
        status, domains, bound = found.status, found.domains, found.bound
    except StalwartError as problem:
        status, domains, bound = f"error: {problem}", 0, float("nan")
    seconds = time.monotonic() - begun
    answer = ANSWER.get(status)
    right = "" if answer is None else "new" if row["verdict"] == "unknown" else "WRONG"
    if answer == row["verdict"]:
        right = "yes"
    values = (row["onnx"], row["vnnlib"], f"{limit:g}", row["verdict"], row["strength"], status, f"{seconds:.2f}")
    values += (f"{time.process_time() - cpu:.2f}", str(domains), f"{bound:.6g}", right)
    return dict(zip(COLUMNS, values, strict=True))


def resumed(path: Path) -> list[dict[str, str]]:
    """Return the lines a file holds; a torn last line is cut off."""
    if not path.exists():
        path.write_text(",".join(COLUMNS) + "\n")
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as stream:
            stream.truncate(len(whole))
    return list(csv.DictReader(whole.decode().splitlines()))


def append(path: Path, row: dict[str, str]) -> None:
    text = io.StringIO()
    csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow(row)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(handle, text.getvalue().encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def summary(rows: list[dict[str, str]]) -> int:
    print(f"\n{'truth':10} {'verified':>9} {'falsified':>9} {'unknown':>9} {'timeout':>9} {'error':>9}")
    for truth in ("unsat", "sat", "unknown"):
        count = Counter(row["status"].split(":")[0] for row in rows if row["truth"] == truth)
        names = ("verified", "falsified", "unknown", "timeout", "error")
        print(f"{truth:10} " + " ".join(f"{count[name]:9}" for name in names))
    wrong = [row for row in rows if row["right"] == "WRONG"]
    answered = sum(row["right"] in ("yes", "new") for row in rows)
    late = sum(float(row["seconds"]) > float(row["limit"]) + 1 for row in rows)
    seconds = sum(float(row["seconds"]) for row in rows)
    print(
        f"\nsettled {answered} of {len(rows)}, wrong {len(wrong)}, over time by more than a second {late}, {seconds:.0f} s"
    )
    for row in wrong:
        print("WRONG", row["onnx"], row["vnnlib"], row["status"], "but", row["truth"], row["strength"])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
