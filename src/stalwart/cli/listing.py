"""What ``stalwart list`` prints: every registered name with its first line of documentation and its options."""

from collections.abc import Mapping

from stalwart.attacks.table import ATTACKS
from stalwart.bounds import METHODS
from stalwart.convert import METHODS as CONVERSIONS
from stalwart.core.errors import UsageError
from stalwart.core.registry import lookup, options_of, suggest
from stalwart.data.corruptions import CORRUPTIONS
from stalwart.data.table import DATASETS
from stalwart.evaluation.suites import SUITES, suite
from stalwart.hardware import FAULTS
from stalwart.models.table import MODELS
from stalwart.objectives.table import OBJECTIVES
from stalwart.recipes import shipped
from stalwart.stochastic.table import NOISES

TABLES: dict[str, Mapping[str, str]] = {
    "attacks": ATTACKS,
    "objectives": OBJECTIVES,
    "models": MODELS,
    "noises": NOISES,
    "datasets": DATASETS,
    "conversions": CONVERSIONS,
    "devices": FAULTS,
    "corruptions": CORRUPTIONS,
}


def listing(what: str) -> str:
    """Return the text for one kind of thing, or for all of them.

    Raises:
        UsageError: there is no such kind.
    """
    kinds = ["recipes", *TABLES, "bounds", "suites"]
    if what == "all":
        return "\n\n".join(f"{kind}\n{listing(kind)}" for kind in kinds)
    if what == "recipes":
        return _columns(shipped())
    if what == "bounds":
        return _columns({name: method.summary for name, method in METHODS.items()})
    if what == "suites":
        return _columns({name: ", ".join(entry.name for entry in suite(name).entries) for name in SUITES})
    if what not in TABLES:
        raise UsageError(f"nothing to list under '{what}'.{suggest(what, kinds)} Known: {', '.join(kinds)}.")
    lines = {}
    for name in sorted(TABLES[what]):
        record = lookup(what, TABLES[what], name)
        options = options_of(record)
        shown = ", ".join(f"{key}" if value is ... else f"{key}={value!r}" for key, value in options.items())
        lines[name] = f"{(record.__doc__ or '').strip().splitlines()[0]}" + (f"\n{{indent}}  {shown}" if shown else "")
    return _columns(lines)


def _columns(rows: Mapping[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {text}".replace("{indent}", " " * (width + 2)) for name, text in rows.items())
