"""Where a published dataset's files lie: the user's folders, the system's, the user's cache, or the publisher."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stalwart.core.errors import FileError
from stalwart.data.download import Remote, fetch

DATA_VARIABLE = "STALWART_DATA"


@dataclass(frozen=True)
class Source:
    """The files of one published dataset, and the names under which people keep them.

    Args:
        name: the dataset's name, and that of its folder in the cache.
        remotes: what the publisher offers; their file names are the first layout.
        layouts: alternative complete sets of files, as paths below one folder; the first that is whole is taken.
        folders: names below a data folder that may hold the files.
        not_folders: names of folders that hold another dataset under the same file names.
        system: folders of the operating system's own packages.
        refused: names of files or folders that hold the same data in a form that is not read.
        why_refused: one sentence that says why.
    """

    name: str
    remotes: tuple[Remote, ...]
    layouts: tuple[tuple[str, ...], ...]
    folders: tuple[str, ...]
    not_folders: tuple[str, ...] = ()
    system: tuple[Path, ...] = ()
    refused: tuple[str, ...] = ()
    why_refused: str = ""

    def find(self, data_dir: Path | None, download: bool, progress: bool) -> tuple[Path, ...]:
        """Return the files of the first whole layout, searching (and, if allowed, downloading) in the documented order.

        The order is ``data_dir``, the folder in ``$STALWART_DATA``, the system's folders, the user's cache. A download
        goes to the first of ``data_dir``, ``$STALWART_DATA`` and the cache that is set, into a folder of the
        dataset's name.

        Raises:
            FileError: the files are nowhere and cannot be had; the message says where they were looked for.
        """
        roots = _roots(data_dir)
        folders = [*self._below(roots), *self.system, _cache() / self.name]
        for folder in folders:
            for layout in self.layouts:
                files = tuple(folder / file for file in layout)
                if all(file.is_file() for file in files):
                    return files
        for folder in folders:
            for name in self.refused:
                if (folder / name).exists():
                    raise FileError(f"found {folder / name}, but {self.why_refused} {self._advice(folder)}")
        target = roots[0] / self.name if roots else _cache() / self.name
        if not download:
            raise self._missing(folders, target, "Downloading is switched off.")
        try:
            return tuple(fetch(remote, target, progress) for remote in self.remotes)
        except FileError as problem:
            raise self._missing(folders, target, str(problem)) from problem

    def _below(self, roots: list[Path]) -> Iterator[Path]:
        for root in roots:
            for name in self.folders:
                yield root / name
            # A folder named after a dataset with the same file names is that dataset, also when given directly.
            own = root.resolve()
            tail = {own.name, f"{own.parent.name}/{own.name}"}
            if tail.isdisjoint(self.not_folders):
                yield root

    def _missing(self, folders: list[Path], target: Path, reason: str) -> FileError:
        names = ", ".join(remote.name for remote in self.remotes)
        places = "\n  ".join(map(str, folders))
        return FileError(
            f"dataset '{self.name}' was not found: no folder holds all of {names}. Looked in\n  {places}\n"
            f"{reason} {self._advice(target)}"
        )

    def _advice(self, folder: Path) -> str:
        urls = " ".join(remote.url for remote in self.remotes)
        return (
            f"Fetch {urls} into {folder}, or name the folder that has the files with --data-dir (data_dir=) or "
            f"the environment variable {DATA_VARIABLE}."
        )


def places(data_dir: Path | None, name: str, folders: tuple[str, ...]) -> list[Path]:
    """Return where a dataset may lie that is not downloaded: below ``data_dir``, ``$STALWART_DATA`` and the cache."""
    return [
        *(place for root in _roots(data_dir) for place in (*(root / one for one in folders), root)),
        _cache() / name,
    ]


def _roots(data_dir: Path | None) -> list[Path]:
    """Return the user's data folders: the given one, then that of the environment."""
    roots = [] if data_dir is None else [data_dir]
    if os.environ.get(DATA_VARIABLE):
        roots.append(Path(os.environ[DATA_VARIABLE]))
    return roots


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "stalwart"
