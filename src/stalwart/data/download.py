"""Downloads that resume, are verified before they appear under their name, and may be asked for by many processes."""

import contextlib
import hashlib
import http.client
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from stalwart.core.errors import FileError

try:
    import fcntl
except ImportError:  # not on this system: processes that download the same file at once are then not kept apart
    fcntl = None  # type: ignore[assignment]

_CHUNK = 1 << 18
_TIMEOUT = 30.0
_RANGE_NOT_SATISFIABLE = 416

Report = Callable[[int, int | None], None]
"""Called with the bytes there are and the bytes there will be (None: the server does not say)."""


@dataclass(frozen=True)
class Remote:
    """A file that a publisher offers: its name here, its address and its published MD5 sum."""

    name: str
    url: str
    md5: str


def fetch(remote: Remote, folder: Path, progress: bool = False) -> Path:
    """Download ``remote`` into ``folder`` unless it is there; what a broken transfer left is continued, not repeated.

    Bytes go to ``NAME.part``, which is renamed only when its MD5 sum is the published one; a file with another sum is
    deleted. While each attempt adds bytes, a broken transfer is taken up again.

    Raises:
        FileError: the server cannot be reached or refuses, the transfer keeps breaking, the sum is wrong, or the folder
            cannot be written.
    """
    path = folder / remote.name
    part = folder / f"{remote.name}.part"
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(part) as stream:
            # Another process may have finished while this one waited for the lock.
            if not path.is_file():
                _complete(remote, stream, progress)
                # Not core.files.atomic: an interrupted transfer must leave its bytes behind.
                os.replace(part, path)
    except OSError as problem:
        if isinstance(problem, FileError):
            raise
        raise FileError(f"cannot write {path}: {problem.strerror or problem}.") from problem
    return path


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
    """Open ``part`` for reading and writing, alone: other processes wait until it is closed. Delete it if empty."""
    while True:
        with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as stream:
            if fcntl is not None:
                fcntl.flock(stream, fcntl.LOCK_EX)
            # Whoever held the lock may have renamed or deleted the file that was opened here.
            try:
                same = os.path.samestat(os.fstat(stream.fileno()), part.stat())
            except FileNotFoundError:
                same = False
            if not same:
                continue
            try:
                yield stream
            finally:
                if os.fstat(stream.fileno()).st_size == 0:
                    part.unlink()
            return


def _complete(remote: Remote, stream: IO[bytes], progress: bool) -> None:
    """Fill ``stream`` with the verified file, or empty it and raise."""
    resumed = stream.seek(0, os.SEEK_END) > 0
    with _reporter(remote.name, progress) as report:
        _transfer(remote, stream, report)
        if resumed and _md5(stream) != remote.md5:
            # What was left from before may be of another version of the file: once more from the start.
            stream.truncate(0)
            _transfer(remote, stream, report)
    found = _md5(stream)
    if found != remote.md5:
        stream.truncate(0)
        raise FileError(
            f"{remote.url} has MD5 sum {found}, not the published {remote.md5}: the file was changed on its way or at "
            "its source. It was deleted; try again later."
        )
    stream.flush()
    os.fsync(stream.fileno())


def _transfer(remote: Remote, stream: IO[bytes], report: Report) -> None:
    """Append what is missing, again and again as long as each attempt gets further than all before it."""
    furthest = stream.seek(0, os.SEEK_END)
    while True:
        problem = _attempt(remote, stream, report)
        stream.flush()
        if problem is None:
            return
        here = stream.seek(0, os.SEEK_END)
        if here <= furthest:
            kept = f" {here} bytes were kept and the next attempt goes on from there." if here else ""
            raise FileError(f"cannot download {remote.url}: {problem}.{kept}")
        furthest = here


def _attempt(remote: Remote, stream: IO[bytes], report: Report) -> str | None:
    """Make one request; return what went wrong, or None when the file is all there."""
    start = stream.seek(0, os.SEEK_END)
    headers = {"User-Agent": "stalwart", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(remote.url, headers=headers), timeout=_TIMEOUT) as answer:
            if answer.status != http.client.PARTIAL_CONTENT or not _continues(answer, start):
                # The server sends the whole file, whatever was asked for.
                start = 0
                stream.truncate(0)
                stream.seek(0)
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length and length.isdigit() else None
            report(start, total)
            while chunk := answer.read(_CHUNK):
                stream.write(chunk)
                start += len(chunk)
                report(start, total)
        return f"the connection broke off at {start} of {total} bytes" if total is not None and start < total else None
    except urllib.error.HTTPError as problem:
        problem.close()
        # Nothing is left to send: the sum will tell whether this is the whole file.
        return None if problem.code == _RANGE_NOT_SATISFIABLE else f"the server says {problem.code} {problem.reason}"
    except urllib.error.URLError as problem:
        return str(problem.reason)
    except http.client.HTTPException as problem:
        return f"the transfer broke off ({type(problem).__name__})"
    except (ConnectionError, TimeoutError, ssl.SSLError) as problem:
        return str(problem)


def _continues(answer: http.client.HTTPResponse, start: int) -> bool:
    return (answer.headers.get("Content-Range") or "").startswith(f"bytes {start}-")


def _md5(stream: IO[bytes]) -> str:
    stream.flush()
    stream.seek(0)
    return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()  # type: ignore[arg-type]


@contextlib.contextmanager
def _reporter(name: str, progress: bool) -> Iterator[Report]:
    """Give a function that shows how far a download is: a bar on a terminal, a line every tenth elsewhere."""
    if not progress:
        yield lambda done, total: None
        return
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _Lines(name)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    """Plain lines for logs: one for every tenth of the file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tenths = -1

    def __call__(self, done: int, total: int | None) -> None:
        tenths = 10 * done // total if total else 0
        if tenths == self.tenths:
            return
        self.tenths = tenths
        size = f" of {total / 1e6:.1f} MB" if total else ""
        print(f"downloading {self.name}: {10 * tenths} %{size}", file=sys.stderr, flush=True)
