"""The suite that is made for a model: attacks chosen by what a look at it told, and the strongest run again twice as long.

Sources: Tramèr, Carlini, Brendel, Madry, NeurIPS 2020 (arXiv 2002.08347): every defence takes attacks of its own; Carlini et
al. 2019 (arXiv 1902.06705), section 5: verify that attacks have converged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stalwart.evaluation.findings import Findings
from stalwart.evaluation.results import Probe
from stalwart.evaluation.suites import ORIGIN, Entry, Suite, noise_off, pgd, surrogates

_STEPS, _DRAWS = "settle-steps", "settle-draws"
_FLAT = ("flat-steps", "misleading-gradient", "no-gradient")
_FEW_DRAWS = 10


@dataclass(frozen=True)
class AdaptiveSuite(Suite):
    """A suite whose attacks :func:`plan` chooses; ``entries`` and ``randomised`` are those for an ordinary model."""

    @property
    def settles(self) -> bool:
        """Whether the strongest attacks are run again with twice the effort."""
        return True

    def chosen(self, randomised: bool, seen: Probe | None) -> tuple[Entry, ...]:
        """Return the attacks for what was seen; without a look, those for an ordinary model."""
        return Suite.chosen(self, randomised, seen) if seen is None else plan(seen, randomised)


def plan(seen: Probe, randomised: bool) -> tuple[Entry, ...]:
    """Return the attacks for a model with these traits.

    On a deterministic model the costly attacks run on what those before them left. On a randomised one each stands alone,
    since a single draw's luck must not decide who is attacked.
    """
    eot: dict[str, Any] = {"eot": seen.draws} if randomised else {}
    few: dict[str, Any] = {"eot": _FEW_DRAWS} if randomised else {}
    found = [Entry("noise", "noise", {}, "noise")]
    if not seen.has("no-gradient"):
        found += [
            Entry("fgsm", "fgsm"),
            *([Entry("pgd-ce-1draw", "pgd", pgd("ce", 10))] if randomised else []),
            Entry("pgd-ce", "pgd", pgd("ce", 20, **eot), curve=True),
            Entry("pgd-ce-long", "pgd", pgd("ce", 100, **eot)),
            *(_randomised(eot) if randomised else _deterministic()),
        ]
    if seen.has("saturated-logits"):
        found.append(Entry("pgd-scaled-ce", "pgd", pgd("scaled-ce", 50, **eot), curve=True))
        if _wide(seen):
            found.append(Entry("float64-ce", "double-precision", {"options": pgd("ce", 50), **eot}))
    if seen.has("spiking"):
        adaptive = {"steps": 100, **few}
        found += [
            surrogates(_FEW_DRAWS if randomised else 1),
            Entry("adaptive-surrogate", "adaptive-surrogate", adaptive),
        ]
    flat = any(seen.has(code) for code in _FLAT)
    if flat and _passable(seen):
        found += [
            Entry("straight-margin", "straight-through", {"options": pgd("margin", 50), **eot}, curve=True),
            Entry("straight-ce", "straight-through", {"options": pgd("ce", 50), **eot}),
        ]
    crafted = {"source": ORIGIN, "attack": "pgd", "options": pgd("margin", 50)}
    found.append(Entry("origin-margin", "transfer", crafted, "transfer"))
    if not randomised and not seen.has("no-gradient"):
        found.append(Entry("apgd-targeted", "apgd", pgd("targeted-dlr", 50), survivors=not randomised))
    # Where gradients are not to be trusted the search stands alone and goes on for longer.
    queries = 5000 if flat else 1000
    found.append(
        Entry("square", "square", {"queries": queries, **few}, curve=seen.has("no-gradient"), survivors=not randomised)
    )
    return tuple(found)


def efforts(entries: tuple[Entry, ...], randomised: bool) -> tuple[str, ...]:
    """Return the names of the attacks that are run again: with steps doubled, and on a randomised model with draws doubled."""
    again = [_STEPS] if any(map(_stepped, entries)) else []
    again += [_DRAWS] if randomised and any(map(_averaged, entries)) else []
    return tuple(again)


def doubled(entries: tuple[Entry, ...], findings: Findings) -> tuple[Entry, ...]:
    """Return, for each of :func:`efforts`, the attack that left the fewest inputs, with twice the effort.

    Of attacks that leave equally many it is the last. On a deterministic model it runs on what all attacks left.
    """
    randomised = findings.judge.randomised
    held = {**findings.left, **findings.correct}

    def again(name: str, fitting: list[Entry], keys: tuple[str, ...]) -> Entry:
        alone = [entry for entry in fitting if entry.name in findings.correct] or fitting
        best = min(reversed(alone), key=lambda entry: float(held[entry.name].float().mean()))
        return replace(best, name=name, options=_twice(best.options, keys), curve=False, survivors=not randomised)

    found = []
    for name in efforts(entries, randomised):
        if name == _STEPS:
            found.append(again(name, [entry for entry in entries if _stepped(entry)], ("steps", "queries")))
        else:
            found.append(again(name, [entry for entry in entries if _averaged(entry)], ("eot",)))
    return tuple(found)


def _deterministic() -> tuple[Entry, ...]:
    return (
        Entry("pgd-margin", "pgd", pgd("margin", 100, restarts=2), curve=True),
        Entry("pgd-dlr", "pgd", pgd("dlr", 50)),
        Entry("pgd-targeted", "pgd", pgd("targeted-margin", 30, restarts=5)),
    )


def _randomised(eot: dict[str, Any]) -> tuple[Entry, ...]:
    return (
        Entry("pgd-margin", "pgd", pgd("margin", 40, **eot), curve=True),
        Entry("pgd-softmax", "pgd", pgd("margin", 20, average="softmax", **eot)),
        noise_off("ce", 20),
        noise_off("margin", 100, curve=True, restarts=2),
        noise_off("dlr", 50),
    )


def _wide(seen: Probe) -> bool:
    trait = seen.trait("saturated-logits")
    return trait is not None and trait.numbers.get("float64", 1.0) < trait.numbers["share"] / 2


def _passable(seen: Probe) -> bool:
    """Tell whether gradients come through once they go straight through what stops them."""
    trait = seen.trait("no-gradient")
    return trait is None or not trait.found or trait.numbers.get("straight", 0.0) > 0


def _stepped(entry: Entry) -> bool:
    return entry.kind != "noise" and not entry.from_origin and _holds(entry.options, ("steps", "queries"))


def _averaged(entry: Entry) -> bool:
    return entry.kind == "white-box" and _holds(entry.options, ("eot",))


def _holds(options: Mapping[str, Any], keys: tuple[str, ...]) -> bool:
    inner = options.get("options", {})
    return any(key in options or key in inner for key in keys)


def _twice(options: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Return options with the numbers of these keys doubled, those of an inner attack too."""
    return {
        key: _twice(value, keys) if key == "options" else 2 * value if key in keys else value
        for key, value in options.items()
    }


ADAPTIVE = AdaptiveSuite("adaptive", plan(Probe(), False), plan(Probe(draws=20), True))
