"""Suites: which attacks judge a model together. The worst case over a suite is what is reported as robust accuracy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from stalwart.attacks import Attack
from stalwart.attacks.autoattack import MEMBERS, Version
from stalwart.attacks.table import ATTACKS
from stalwart.core.numbers import require
from stalwart.core.registry import build, lookup
from stalwart.evaluation.results import Probe
from stalwart.sets import ThreatSet

ORIGIN = "origin"
"""The source of a transfer attack that is the network which the model was converted from."""
Kind = Literal["noise", "white-box", "transfer"]


@dataclass(frozen=True)
class Entry:
    """One attack of a suite.

    Attributes:
        name: how the report calls it.
        attack: registered name.
        options: hyper-parameters.
        kind: random noise is a control, a transfer attack a check on the white-box ones.
        curve: whether it also runs at every radius of the accuracy curve.
        survivors: whether it runs only on what the attacks before it have left, so that its row counts these together.
    """

    name: str
    attack: str
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = "white-box"
    curve: bool = False
    survivors: bool = False

    @property
    def from_origin(self) -> bool:
        """Whether it crafts on the network that the model was converted from."""
        return self.options.get("source") == ORIGIN

    def build(self, origin: nn.Module | None = None) -> Attack:
        """Return the attack itself; one that crafts on the network before a conversion needs that network, ``origin``."""
        options = dict(self.options)
        if self.from_origin:
            options["source"] = origin
        found: Attack = build("attack", ATTACKS, self.attack, options)
        return found


@dataclass(frozen=True)
class Suite:
    """Attacks that are run together: ``entries`` on a deterministic model, ``randomised`` on one whose answers vary.

    "pgd-softmax" attacks the averaged softmax, so that the rule which decides by it meets an attack of its own.
    The diagnostics read some entries by name: "noise", "fgsm", "pgd-ce" (the reference), "pgd-ce-long" (more steps), and
    every entry of kind "transfer". Afterwards ``chips`` of each device of :mod:`stalwart.evaluation.hardware` are measured, by
    default none.
    """

    name: str
    entries: tuple[Entry, ...]
    randomised: tuple[Entry, ...]
    chips: int = 0

    @property
    def settles(self) -> bool:
        """Whether the strongest attacks are run again with twice the effort."""
        return False

    def chosen(self, randomised: bool, seen: Probe | None) -> tuple[Entry, ...]:
        """Return the attacks for such a model; ``seen`` is what a look at it told, for a suite that cares."""
        return self.randomised if randomised else self.entries

    def fitting(
        self,
        model: nn.Module,
        randomised: bool,
        within: ThreatSet,
        origin: bool = False,
        seen: Probe | None = None,
    ) -> tuple[Entry, ...]:
        """Return the entries that are made for a model and a threat set.

        Args:
            model: the model to judge.
            randomised: whether its answers vary.
            within: the threat set.
            origin: whether the network that it was converted from is at hand.
            seen: what a look at the model told.

        Raises:
            UsageError: a set of something else than inputs.
        """
        require(
            isinstance(within, ThreatSet),
            f"suites judge perturbed inputs, in a threat set such as Linf(0.1), not in a {type(within).__name__}; attack "
            "weights by sw.attack('weight-pgd').",
        )
        entries = self.chosen(randomised, seen)
        return tuple(
            entry
            for entry in entries
            if (origin or not entry.from_origin) and (entry.from_origin or entry.build().fits(model, within))
        )


def pgd(loss: str, steps: int, **more: Any) -> dict[str, Any]:
    """Return options of an attack that takes steps."""
    return {"loss": loss, "steps": steps, **more}


def noise_off(loss: str, steps: int, curve: bool = False, **more: Any) -> Entry:
    """Return the transfer from the model itself with its noise off."""
    options = {"attack": "pgd", "options": pgd(loss, steps, **more)}
    return Entry(f"noise-off-{loss}", "transfer", options, "transfer", curve)


CONTROLS = (Entry("noise", "noise", {}, "noise"), Entry("fgsm", "fgsm"))

_STOCHASTIC = (
    *CONTROLS,
    Entry("pgd-ce-1draw", "pgd", pgd("ce", 10)),
    Entry("pgd-ce", "pgd", pgd("ce", 20, eot=20), curve=True),
    Entry("pgd-ce-long", "pgd", pgd("ce", 100, eot=20)),
    Entry("pgd-margin", "pgd", pgd("margin", 20, eot=20), curve=True),
    Entry("pgd-softmax", "pgd", pgd("margin", 20, eot=20, average="softmax")),
    noise_off("ce", 20),
    noise_off("margin", 100, curve=True, restarts=2),
    noise_off("dlr", 50),
)

QUICK = Suite(
    "quick",
    (
        *CONTROLS,
        Entry("pgd-ce", "pgd", pgd("ce", 20), curve=True),
        Entry("pgd-margin", "pgd", pgd("margin", 20), curve=True),
    ),
    (
        *CONTROLS,
        Entry("pgd-ce", "pgd", pgd("ce", 20, eot=20), curve=True),
        Entry("pgd-margin", "pgd", pgd("margin", 20, eot=20), curve=True),
        noise_off("margin", 20, curve=True),
    ),
)

STANDARD = Suite(
    "standard",
    (
        *CONTROLS,
        Entry("pgd-ce", "pgd", pgd("ce", 20), curve=True),
        Entry("pgd-ce-long", "pgd", pgd("ce", 100)),
        Entry("pgd-margin", "pgd", pgd("margin", 100, restarts=2), curve=True),
        Entry("pgd-dlr", "pgd", pgd("dlr", 50)),
        Entry("pgd-targeted", "pgd", pgd("targeted-margin", 30, restarts=5)),
    ),
    _STOCHASTIC,
)

STOCHASTIC = Suite("stochastic", _STOCHASTIC, _STOCHASTIC)


def surrogates(eot: int) -> Entry:
    """Return the attack under nineteen surrogates."""
    options = {"options": pgd("margin", 20), "eot": eot}
    return Entry("surrogates", "surrogate-ensemble", options, curve=True)


SPIKING = Suite(
    "spiking",
    (*STANDARD.entries, surrogates(1), Entry("adaptive-surrogate", "adaptive-surrogate", {"steps": 100}, curve=True)),
    (*_STOCHASTIC, surrogates(10), Entry("adaptive-surrogate", "adaptive-surrogate", {"steps": 50, "eot": 10})),
)
"""For networks of spiking neurons: also nineteen assumed derivatives of a spike, and one that adapts to each neuron."""


def _ensemble(name: str, attack: str, options: dict[str, Any], eot: int) -> Entry:
    members = {"attack": attack, "options": options, "eot": eot}
    return Entry(f"surrogates-{name}", "surrogate-ensemble", members, curve=name == "pgd", survivors=True)


def _adaptive(eot: int) -> tuple[Entry, ...]:
    crafted = {"source": ORIGIN, "attack": "pgd", "options": pgd("margin", 50)}
    return (
        *CONTROLS,
        Entry("pgd-ce", "pgd", pgd("ce", 20, eot=eot), curve=True),
        Entry("pgd-ce-long", "pgd", pgd("ce", 100, eot=eot)),
        Entry("origin-margin", "transfer", crafted, "transfer"),
        _ensemble("fgsm", "fgsm", {}, eot),
        _ensemble("rfgsm", "rfgsm", {}, eot),
        _ensemble("pgd", "pgd", pgd("ce", 20), eot),
        _ensemble("apgd-dlr", "apgd", pgd("dlr", 10), eot),
        _ensemble("apgd-targeted", "apgd", pgd("targeted-dlr", 10), eot),
        Entry("adaptive-surrogate", "adaptive-surrogate", {"steps": 100, "eot": eot}, curve=True, survivors=True),
        Entry("square", "square", {"queries": 5000, "eot": eot}, survivors=True),
    )


SNN_ADAPTIVE = Suite("snn-adaptive", _adaptive(1), _adaptive(10))
"""For converted and other spiking networks: nineteen assumed derivatives under each of five attacks, one that adapts, transfer
from the network before the conversion, and a search without gradients; the costly ones on what is left.

Source: Özdenizci and Legenstein, TMLR 2024 (arXiv 2311.09266), section 4.
"""

_REFERENCE = Entry("pgd-ce", "pgd", pgd("ce", 20), curve=True)


def _autoattack(version: Version, survivors: bool) -> tuple[Entry, ...]:
    return tuple(
        Entry(name, "autoattack", {"version": version, "only": [name]}, curve=name == "apgd-t", survivors=survivors)
        for name in MEMBERS[version]
    )


AUTOATTACK = Suite(
    "autoattack",
    (*CONTROLS, _REFERENCE, *_autoattack("standard", True)),
    (
        *CONTROLS,
        Entry("pgd-ce", "pgd", pgd("ce", 20, eot=20), curve=True),
        *_autoattack("rand", False),
        noise_off("margin", 20, curve=True),
    ),
)
"""The members of AutoAttack, version ``standard``, each on what those before it have left; ``rand`` on a randomised model.

Source: Croce and Hein, ICML 2020 (arXiv 2003.01690), section 5.
"""

AUTOATTACK_PLUS = Suite("autoattack-plus", (*CONTROLS, _REFERENCE, *_autoattack("plus", True)), AUTOATTACK.randomised)

HARDWARE = Suite("hardware", QUICK.entries, QUICK.randomised, chips=25)
"""The attacks of ``quick``, and then what imperfect processors leave: :func:`stalwart.evaluation.hardware.measure`."""

_FEW_FLIPS = tuple(Entry(name, name) for name in ("spikefool", "binary-pgd", "probabilistic-pgd"))

EVENTS = Suite("events", (*QUICK.entries, *_FEW_FLIPS), (*QUICK.randomised, *_FEW_FLIPS))
"""For rasters of events: also attacks that look for the fewest flips; other threat sets meet those of ``quick`` alone."""


def _minimal(eot: int) -> tuple[Entry, ...]:
    return tuple(Entry(name, name, {"eot": eot}) for name in ("deepfool", "ddn", "fmn", "sparsefool"))


MINIMAL = Suite("minimal", (*QUICK.entries, *_minimal(1)), (*QUICK.randomised, *_minimal(20)))
"""The attacks of ``quick``, and those that look for the nearest adversarial point, whatever the radius."""

SUITES: dict[str, str] = {
    "adaptive": "stalwart.evaluation.adaptive:ADAPTIVE",
    "autoattack": "stalwart.evaluation.suites:AUTOATTACK",
    "autoattack-plus": "stalwart.evaluation.suites:AUTOATTACK_PLUS",
    "events": "stalwart.evaluation.suites:EVENTS",
    "hardware": "stalwart.evaluation.suites:HARDWARE",
    "minimal": "stalwart.evaluation.suites:MINIMAL",
    "quick": "stalwart.evaluation.suites:QUICK",
    "standard": "stalwart.evaluation.suites:STANDARD",
    "snn-adaptive": "stalwart.evaluation.suites:SNN_ADAPTIVE",
    "stochastic": "stalwart.evaluation.suites:STOCHASTIC",
    "spiking": "stalwart.evaluation.suites:SPIKING",
}


def suite(name: str) -> Suite:
    """Return the suite of that name.

    Raises:
        UsageError: there is none.
    """
    found: Suite = lookup("suite", SUITES, name)
    return found
