"""From a recipe's name or file and ``key=value`` words to a checked recipe."""

import difflib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pydantic
import yaml

from stalwart.core.errors import FileError, StalwartError, UsageError
from stalwart.core.files import read_bytes
from stalwart.core.registry import lookup, suggest
from stalwart.evaluation.suites import SUITES
from stalwart.recipes.schema import EvaluationSection, Recipe


def shipped() -> dict[str, str]:
    """Return the shipped recipes: name to one-line description."""
    found = {}
    for entry in sorted(files("stalwart.recipes").joinpath("shipped").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            text = yaml.safe_load(entry.read_text())
            found[entry.name.removesuffix(".yaml")] = str(text.get("description", ""))
    return found


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe called ``source`` (a shipped name or a YAML file) after applying ``key.key=value`` overrides.

    Raises:
        UsageError: an unknown recipe, key, name or option, or an impossible value; the message suggests the nearest.
        FileError: the file cannot be read or is not YAML.
    """
    values = _read(source)
    _require_mapping(values, source)
    for word in overrides:
        override(values, word)
    return parse_recipe(values, source)


def parse_recipe(values: Any, source: str) -> Recipe:
    """Check a recipe's values; ``source`` names it in errors."""
    _require_mapping(values, source)
    try:
        return Recipe(**values)
    except pydantic.ValidationError as problem:
        raise UsageError(f"recipe {source}: {_readable(problem)}") from None
    except StalwartError as problem:
        raise UsageError(f"recipe {source}: {problem}") from None


def parse_evaluation(values: dict[str, Any]) -> EvaluationSection:
    """Check the options of an evaluation, as the command line gives them."""
    try:
        section = EvaluationSection(**values)
    except pydantic.ValidationError as problem:
        raise UsageError(f"evaluation: {_readable(problem)}") from None
    lookup("suite", SUITES, section.suite)
    return section


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML, every default spelled out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read(source: str) -> Any:
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        text, name = read_bytes(path, "recipe").decode(errors="replace"), str(path)
    else:
        entry = files("stalwart.recipes").joinpath("shipped", f"{source}.yaml")
        if not entry.is_file():
            raise UsageError(
                f"unknown recipe '{source}'.{suggest(source, shipped())} `stalwart list recipes` shows those shipped; a "
                "recipe of your own is given as a file that ends in .yaml."
            )
        text, name = entry.read_text(), source
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as problem:
        raise FileError(f"recipe {name} is not valid YAML: {' '.join(str(problem).split())}") from None


def _require_mapping(values: Any, source: str) -> None:
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"recipe {source} must be a YAML mapping with the keys {', '.join(Recipe.model_fields)}.")


def override(values: Any, word: str) -> None:
    """Set one key of nested mappings, in place, by a word such as ``training.epochs=5``.

    Raises:
        UsageError: it is no such word, its value is not YAML, or there is nothing to set below a key.
    """
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise UsageError(f"'{word}' is not an override; write key=value, such as training.epochs=5.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"override '{word}': {text!r} is not a YAML value.") from None
    *parents, last = key.split(".")
    at = values
    for parent in parents:
        if not isinstance(at, dict):
            raise UsageError(f"override '{word}': there is nothing below '{parent}'.")
        at = at.setdefault(parent, {})
        if at is None:
            raise UsageError(f"override '{word}': '{parent}' is null; set it as a whole.")
    if not isinstance(at, dict):
        raise UsageError(f"override '{word}': '{'.'.join(parents)}' is a plain value and has no keys.")
    at[last] = value


def _readable(problem: pydantic.ValidationError) -> str:
    first = problem.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, Exception):
        return f"{where + ': ' if where else ''}{cause}"
    if first["type"] == "extra_forbidden":
        section = _section(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), section, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return f"unknown key '{where}'.{hint} Known here: {', '.join(section)}."
    return f"'{where}': {first['msg']} (got {first['input']!r})."


def _section(path: tuple[Any, ...]) -> list[str]:
    kind: Any = Recipe
    for part in path:
        annotation = kind.model_fields[part].annotation
        kind = next(
            (one for one in getattr(annotation, "__args__", (annotation,)) if hasattr(one, "model_fields")), annotation
        )
    return list(kind.model_fields)
