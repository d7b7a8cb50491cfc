"""The records an evaluation returns: every rate carries its counts and its interval."""

import base64
from typing import Any, Literal

import numpy as np
import pydantic


class Record(pydantic.BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Rate(Record):
    """``correct`` of ``total`` samples with a 95 % confidence interval for the share."""

    correct: int
    total: int
    value: float
    low: float
    high: float
    method: Literal["wilson", "clopper-pearson"] = "wilson"

    @classmethod
    def of(cls, correct: int, total: int, method: Literal["wilson", "clopper-pearson"] = "wilson") -> "Rate":
        """Compute the interval (Wilson 1927, or the exact one of Clopper and Pearson 1934)."""
        from scipy.stats import binomtest  # takes longer to import than all the rest

        kind: Literal["wilson", "exact"] = "wilson" if method == "wilson" else "exact"
        low, high = binomtest(correct, total).proportion_ci(0.95, method=kind)
        return cls(correct=correct, total=total, value=correct / total, low=float(low), high=float(high), method=method)


class AttackRow(Record):
    """One attack at one radius: the accuracy that is left, and what the attack spent.

    ``flips``, of rasters of events alone: the median number of flips where the attack broke what was right before.
    ``distance`` is the median distance of the nearest adversarial points of an attack that seeks them: misclassified inputs
    count as 0. It is None where the attack found a point for less than half of the inputs, or ran on survivors only.
    """

    name: str
    kind: Literal["clean", "noise", "white-box", "transfer"]
    eps: float
    rule: str
    eot: int
    robust: Rate
    forwards: float
    backwards: float
    seconds: float
    options: dict[str, Any] = {}
    flips: float | None = None
    distance: float | None = None


class CurvePoint(Record):
    """Worst-case accuracy at one radius."""

    eps: float
    robust: Rate


class Flag(Record):
    """One masking check of the evaluation: whether it fired, and what that means in plain words."""

    code: str
    title: str
    fired: bool
    explanation: str
    evidence: str


class Trait(Record):
    """Something about a model that decides which attacks can work: whether it is there, by which numbers, and what follows.

    ``response`` says what the suite ``adaptive`` does about it; other suites do not respond.
    """

    code: str
    title: str
    found: bool
    evidence: str
    response: str
    numbers: dict[str, float] = {}


class Probe(Record):
    """What a look at the model told before any attack: its traits, and how many noise draws a gradient needs."""

    traits: list[Trait] = []
    draws: int = 1

    def has(self, code: str) -> bool:
        """Tell whether the trait was found."""
        return any(trait.found for trait in self.traits if trait.code == code)

    def trait(self, code: str) -> Trait | None:
        """Return the trait, found or not; None where it was not looked for."""
        return next((trait for trait in self.traits if trait.code == code), None)


class StochasticRow(Record):
    """Accuracy of a randomised model under one decision rule, on fresh draws."""

    rule: str
    clean: Rate
    robust: Rate


class SweepPoint(Record):
    """Robust accuracy against an attack that averages ``draws`` noise draws a step."""

    draws: int
    robust: Rate


class StochasticSection(Record):
    """What must be said of a randomised model beside its accuracy."""

    rules: list[StochasticRow]
    all_of_k: list[SweepPoint]
    sweep: list[SweepPoint]
    noise: dict[str, float]


class Picture(Record):
    """A clean image, its adversarial twin and what the model says of each; pixels are uint8, [C, H, W]."""

    label: int
    clean_prediction: int
    adversarial_prediction: int
    shape: tuple[int, int, int]
    clean: str
    adversarial: str

    @staticmethod
    def pack(pixels: np.ndarray) -> str:
        """Encode uint8 pixels as base64 text."""
        return base64.b64encode(np.ascontiguousarray(pixels, dtype=np.uint8).tobytes()).decode()

    def unpack(self, which: Literal["clean", "adversarial"]) -> np.ndarray:
        """Return the pixels, uint8 of ``shape``."""
        return np.frombuffer(base64.b64decode(getattr(self, which)), np.uint8).reshape(self.shape)


class Evaluation(Record):
    """The whole result of ``evaluate``: clean accuracy, every attack, the worst case, the warnings."""

    suite: str
    dataset: str
    split: str
    samples: int
    threat: str
    eps: float
    seed: int
    randomised: bool
    rule: str
    classes: list[str]
    clean: Rate
    worst: Rate
    attacks: list[AttackRow]
    curve: list[CurvePoint]
    flags: list[Flag]
    probe: Probe | None = None
    stochastic: StochasticSection | None = None
    pictures: list[Picture] = []
    seconds: float = 0.0
