"""Sweeps: one recipe over every combination of some values, each a run that is trained and evaluated, side by side."""

import contextlib
import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stalwart.core.errors import StalwartError, UsageError
from stalwart.core.files import read_bytes, require_writable
from stalwart.core.numbers import require
from stalwart.core.workers import LostShardError, Workers
from stalwart.recipes.judging import evaluate_run
from stalwart.recipes.load import dump_recipe, load_recipe
from stalwart.recipes.runs import Source, load_run, train
from stalwart.recipes.schema import Recipe


@dataclass(frozen=True)
class Combination:
    """One run of a sweep.

    Attributes:
        name: made of the values, such as "seed-0_epochs-5"; also its folder's name.
        recipe: complete; its name is that of the recipe that is swept, and this one.
        folder: of the run.
    """

    name: str
    recipe: Recipe
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether the run is trained and evaluated."""
        return (self.folder / "report.json").exists()


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its clean accuracy and its worst case, or what went wrong."""

    name: str
    clean: float = 0.0
    worst: float = 0.0
    error: str = ""


def combinations(source: str, over: Sequence[str], overrides: Sequence[str], out: Path) -> list[Combination]:
    """Return the runs of a sweep, checked.

    Args:
        source: a shipped recipe or a YAML file.
        over: words such as ``training.epochs=5,10``; the last one varies fastest.
        overrides: words such as ``seed=1``, the same for all runs.
        out: the folder that their folders are below.

    Raises:
        UsageError: a recipe that is not sound, a word that names no values, values that are named twice, or a folder that holds
            another run.
    """
    require(len(over) > 0, "a sweep needs something to vary; add --over key=a,b,c, such as --over seed=0,1,2.")
    axes = [_axis(word) for word in over]
    keys = [key for key, _ in axes]
    for key in keys:
        require(keys.count(key) == 1, f"--over names '{key}' twice; put all of its values into one.")
        fixed = [word for word in overrides if word.partition("=")[0] == key]
        require(not fixed, f"'{key}' is both fixed and swept over; leave one of them out.")
    base, found = load_recipe(source, overrides).name, []
    for values in itertools.product(*(values for _, values in axes)):
        chosen = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
        name = "_".join(f"{_short(key, keys)}-{_plain(value)}" for key, value in zip(keys, values, strict=True))
        recipe = load_recipe(source, [*overrides, *chosen, f"name={base}_{name}"])
        found.append(Combination(name, recipe, out / name))
    names = [one.name for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"two combinations would both be called '{twice}'; name each value once.")
    for one in found:
        path = one.folder / "recipe.yaml"
        if path.exists() and read_bytes(path, "recipe").decode(errors="replace") != dump_recipe(one.recipe):
            raise UsageError(f"{one.folder} holds a run of another recipe; choose another --out.")
    return found


def sweep(
    runs: Sequence[Combination], source: Source, workers: Workers, device: str | None = None
) -> Iterator[tuple[Combination, Outcome]]:
    """Train and evaluate the runs that are not finished, and yield each as it is done; one that fails stops no other.

    Raises:
        FileError: a run's folder cannot be written.
    """
    left = [one for one in runs if not one.finished]
    for one in left:
        require_writable(one.folder)
    for number, answer in workers.map_shards(functools.partial(complete, source=source, device=device), left):
        one = left[number]
        yield one, Outcome(one.name, error=str(answer)) if isinstance(answer, LostShardError) else answer


def complete(one: Combination, source: Source, device: str | None = None) -> Outcome:
    """Train and evaluate a run, or go on where it was killed; what it prints goes into ``log.txt`` in its folder."""
    try:
        with (one.folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
            if not (one.folder / "model.safetensors").exists():
                train(one.recipe, one.folder, source, resume=(one.folder / "recipe.yaml").exists(), device=device)
            loaded, section = load_run(one.folder, source), one.recipe.evaluation
            report = evaluate_run(one.folder, source, loaded, section, 0, one.folder, device or "cpu")
    except StalwartError as problem:
        return Outcome(one.name, error=str(problem))
    except Exception as problem:  # whatever stops one run must not stop the others
        return Outcome(one.name, error=f"{type(problem).__name__}: {problem}")
    (run,) = report.runs
    return Outcome(one.name, run.evaluation.clean.value, run.evaluation.worst.value)


def _axis(word: str) -> tuple[str, list[str]]:
    """Split ``key=a,b,c`` at the commas outside of brackets."""
    key, equals, text = word.partition("=")
    values, depth = [""], 0
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0:
            values.append("")
        else:
            values[-1] += sign
    values = [value.strip() for value in values]
    require(
        bool(key and equals) and all(values),
        f"--over '{word}' does not name values; write key=a,b,c, such as training.epochs=5,10.",
    )
    return key, values


def _plain(value: str) -> str:
    """Return a value with what does not belong into a folder's name left out."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", value.strip("[]{} \"'")) or "none"


def _short(key: str, keys: Sequence[str]) -> str:
    """Return the last part of a key, or all of it where others end alike."""
    last = key.rpartition(".")[2]
    return key if sum(other.rpartition(".")[2] == last for other in keys) > 1 else last
