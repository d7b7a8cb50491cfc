"""What a model keeps under common corruptions: accuracy for each kind and severity, and their mean."""

from collections.abc import Sequence

import pydantic
import torch
from torch import Tensor, nn

from stalwart.core.errors import InputError
from stalwart.core.numbers import require
from stalwart.core.progress import Advance, silent
from stalwart.core.random import generator
from stalwart.data.corruptions import CORRUPTIONS, SEVERITIES, corruption, require_images, scale_of
from stalwart.evaluation.judge import Judge
from stalwart.evaluation.results import Rate, Record
from stalwart.evaluation.statistics import Mean, mean_of
from stalwart.stochastic.rules import Rule

_VALUES = 3_000_000
"""Values that are corrupted at a time; fixed, since draws of the noise depend on it."""


class CorruptionRow(Record):
    """One kind of corruption.

    Attributes:
        corruption: its published name.
        accuracy: at each severity measured, in their order; none where it was refused.
        mean: over the severities.
        refused: why there are no figures, such as grey images without colours to saturate; empty where there are.
    """

    corruption: str
    accuracy: list[Rate] = pydantic.Field(default_factory=list)
    mean: float = 0.0
    refused: str = ""


class CorruptionsResult(Record):
    """What common corruptions leave of a model.

    Attributes:
        samples: inputs, the first so many of the evaluation.
        severities: those measured, each 1 to 5.
        scale: whose published parameters: "small" (CIFAR-10-C) or "large" (ImageNet-C).
        clean: accuracy without corruption, under the same decision rule.
        mean: accuracy over all kinds and severities, each with the same weight; its interval is over inputs.
        rows: each kind.
    """

    samples: int
    severities: list[int]
    scale: str
    clean: Rate
    mean: Mean
    rows: list[CorruptionRow]


def check_severities(severities: Sequence[int]) -> None:
    """Refuse severities that there are not, or one twice.

    Raises:
        UsageError: the message names them.
    """
    require(
        all(one in SEVERITIES for one in severities) and len(set(severities)) == len(severities),
        f"severities of corruptions are among 1 to 5, each once, got {', '.join(map(str, severities))}.",
    )


def steps() -> int:
    """Return how many steps :func:`measure` reports to ``advance``."""
    return len(CORRUPTIONS)


def measure(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    seed: int = 0,
    severities: Sequence[int] = SEVERITIES,
    rule: str = "deterministic",
    advance: Advance = silent,
) -> CorruptionsResult:
    """Measure a model under every common corruption; it is left as it was.

    Args:
        model: maps images [B, C, H, W] to logits [B, K].
        x: images [N, C, H, W] in [0, 1].
        y: labels [N].
        seed: of the corruptions, and of the draws of a randomised model.
        severities: which, each 1 to 5.
        rule: decision rule of a randomised model; "deterministic" for others.
        advance: called with the number of kinds done.

    Raises:
        InputError: no images in [0, 1].
        UsageError: severities that there are not.

    Source: Hendrycks and Dietterich, ICLR 2019, section 4.1; accuracies are not divided by those of a reference network.
    """
    require_images(x)
    check_severities(severities)
    require(len(severities) > 0, "corruptions need at least one severity.")
    randomised = rule != "deterministic"
    judge = Judge(model, y, randomised, seed, rule == "mean-network")
    decided: Rule = rule if randomised else "single"  # type: ignore[assignment]
    clean = judge.margins(x, "corruption", "clean")[decided] > 0
    total, count, rows = clean.new_zeros(len(x)).double(), 0, []
    for done, name in enumerate(CORRUPTIONS, 1):
        found: list[Tensor] = []
        try:
            for severity in severities:
                corrupted = corrupt(x, name, severity, seed)
                found.append(judge.margins(corrupted, "corruption", name, severity)[decided] > 0)
        except InputError as problem:
            rows.append(CorruptionRow(corruption=name, refused=str(problem)))
        else:
            rates = [Rate.of(int(right.sum()), len(x)) for right in found]
            mean = sum(rate.value for rate in rates) / len(rates)
            rows.append(CorruptionRow(corruption=name, accuracy=rates, mean=mean))
            total, count = total + sum(right.double() for right in found), count + len(found)
        advance(done, name)
    return CorruptionsResult(
        samples=len(x),
        severities=list(severities),
        scale=scale_of(x),
        clean=Rate.of(int(clean.sum()), len(x)),
        mean=mean_of(total / count),
        rows=rows,
    )


def corrupt(x: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """Return images [N, C, H, W] under one corruption; the same seed gives the same images, whatever the model."""
    source = generator(seed, "corruption", name, severity, device=x.device)
    change = corruption(name, severity=severity)
    parts = x.split(max(1, _VALUES // x[0].numel()))
    return torch.cat([change(part, source) for part in parts])
