"""Registry tables: plain dicts from a name to ``"module:Object"``, imported only when asked for."""

import dataclasses
import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import pydantic

from stalwart.core.errors import UsageError


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def lookup(kind: str, table: Mapping[str, str], name: str) -> Any:
    """Import and return the object that ``table`` holds under ``name``.

    Raises:
        UsageError: the table has no such name; the message suggests the nearest one and lists the rest.
    """
    if name not in table:
        raise UsageError(f"unknown {kind} '{name}'.{suggest(name, table)} Known: {', '.join(sorted(table))}.")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def options_of(record: type) -> dict[str, Any]:
    """Return the hyper-parameters of a frozen record, each with its default (``...`` where there is none)."""
    found = {}
    for field in dataclasses.fields(record):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
        else:
            found[field.name] = ...
    return found


def build(kind: str, table: Mapping[str, str], name: str, options: Mapping[str, Any]) -> Any:
    """Build the frozen record registered under ``name`` from untrusted options, converting ``"8/255"`` and the like.

    Raises:
        UsageError: the name or an option is unknown, or an option's value has the wrong type or range.
    """
    record = lookup(kind, table, name)
    known = [field.name for field in dataclasses.fields(record) if field.init]
    for key in options:
        if key not in known:
            raise UsageError(
                f"{kind} '{name}' has no option '{key}'.{suggest(key, known)} It takes: {', '.join(known) or 'none'}."
            )
    config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(_with_config(record, config))
        return adapter.validate_python(dict(options))
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if not first["loc"] and isinstance(cause, UsageError):
            raise cause from None  # a record's own check, which names the option itself
        what = cause if isinstance(cause, UsageError) else f"{first['msg']} (got {first['input']!r})."
        raise UsageError(f"{kind} '{name}', option '{first['loc'][0]}': {what}") from None


def _with_config(record: type, config: pydantic.ConfigDict) -> type:
    if "__pydantic_config__" not in vars(record):
        record.__pydantic_config__ = config  # type: ignore[attr-defined]
    return record
