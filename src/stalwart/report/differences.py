"""Runs against each other: paired differences on the same inputs, and runs of one recipe that differ in their seed alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from stalwart.core.errors import InputError
from stalwart.evaluation import Samples
from stalwart.evaluation.results import Evaluation, Record
from stalwart.evaluation.statistics import OverSeeds, PairedDifference, holm, over_seeds, paired

_ASIDE = ("seed", "name", "description", "evaluation")
"""What two recipes of one way of training may differ in; how it was evaluated is compared elsewhere."""


class Difference(Record):
    """Two runs that were evaluated alike: how much more accurate the first is than the second.

    Attributes:
        first: name of a run.
        second: name of another.
        clean: on unattacked inputs; None where they cannot be compared.
        worst: under the worst of all attacks; None where they cannot be compared.
        clean_adjusted: p of the clean difference, adjusted by Holm for all pairs of runs that were evaluated alike.
        worst_adjusted: the same of the worst-case difference.
        reason: why they cannot be compared; empty where they are.
    """

    first: str
    second: str
    clean: PairedDifference | None = None
    worst: PairedDifference | None = None
    clean_adjusted: float | None = None
    worst_adjusted: float | None = None
    reason: str = ""


class SeedGroup(Record):
    """Runs of one recipe under several seeds, on the same inputs.

    Attributes:
        recipe: its name.
        runs: names of the runs, one a seed.
        seeds: the seed of each.
        clean: accuracy over seeds on unattacked inputs; None where the inputs differ.
        worst: the same in the worst case.
        reason: why there are no figures; empty where there are.
    """

    recipe: str
    runs: list[str]
    seeds: list[int]
    clean: OverSeeds | None = None
    worst: OverSeeds | None = None
    reason: str = ""


@dataclass(frozen=True)
class Judged:
    """A run as it is compared: its name, evaluation and recipe, and its per-sample table, None where that is missing."""

    name: str
    evaluation: Evaluation
    recipe: dict[str, Any] | None = None
    samples: Samples | None = None

    def outcomes(self, column: str) -> Tensor:
        """Return a column of the table, [N] bool.

        Raises:
            InputError: it has no such column, or the table is not the one of this evaluation.
        """
        table = {} if self.samples is None else self.samples.columns
        if column not in table:
            raise InputError(f"the per-sample table of '{self.name}' has no column '{column}'; evaluate the run again.")
        values = torch.tensor([int(value) for value in table[column]]) > 0
        rate = self.evaluation.clean if column == "clean" else self.evaluation.worst
        right, total = int(values.sum()), len(values)
        if (right, total) != (rate.correct, rate.total):
            raise InputError(
                f"the per-sample table of '{self.name}' is not the one of its report ({right} of {total} right in '{column}', "
                f"{rate.correct} of {rate.total} in the report); evaluate the run again."
            )
        return values


def setting(evaluation: Evaluation) -> tuple[Any, ...]:
    """Return what two evaluations must share for their numbers to stand in one table."""
    return evaluation.dataset, evaluation.split, evaluation.threat, evaluation.eps, evaluation.suite


def compare(runs: Sequence[Judged]) -> tuple[list[Difference], list[SeedGroup]]:
    """Compare every two runs that were evaluated alike, and gather runs that differ in their seed alone.

    Raises:
        InputError: a per-sample table that is not the one of its report.
    """
    alike: dict[tuple[Any, ...], list[Judged]] = {}
    for run in runs:
        alike.setdefault(setting(run.evaluation), []).append(run)
    differences = [found for members in alike.values() for found in _pairs(members)]
    return differences, [found for members in alike.values() for found in _seeds(members)]


def _pairs(members: list[Judged]) -> list[Difference]:
    found = []
    for one, other in combinations(members, 2):
        reason = _obstacle(one, other)
        both = {"first": one.name, "second": other.name}
        if reason:
            found.append(Difference(**both, reason=reason))
            continue
        clean, worst = (paired(one.outcomes(column), other.outcomes(column)) for column in ("clean", "worst"))
        found.append(Difference(**both, clean=clean, worst=worst))
    compared = [one for one in found if one.clean is not None and one.worst is not None]
    clean_p, worst_p = (
        holm([value.p for one in compared if (value := getattr(one, column)) is not None])
        for column in ("clean", "worst")
    )
    new = {
        id(one): one.model_copy(update={"clean_adjusted": clean, "worst_adjusted": worst})
        for one, clean, worst in zip(compared, clean_p, worst_p, strict=True)
    }
    return [new.get(id(one), one) for one in found]


def _seeds(members: list[Judged]) -> list[SeedGroup]:
    families: dict[str, dict[int, Judged]] = {}
    for run in members:
        if run.recipe is not None and isinstance(run.recipe.get("seed"), int):
            rest = {key: value for key, value in run.recipe.items() if key not in _ASIDE}
            # A seed that comes twice is one network, however often it was evaluated.
            families.setdefault(json.dumps(rest, sort_keys=True), {}).setdefault(run.recipe["seed"], run)
    found = []
    for family in families.values():
        if len(family) < 2:
            continue
        seeds = sorted(family)
        runs = [family[seed] for seed in seeds]
        head: dict[str, Any] = {
            "recipe": str((runs[0].recipe or {}).get("name", runs[0].name)),
            "runs": [run.name for run in runs],
            "seeds": seeds,
        }
        reason = next((why for run in runs[1:] if (why := _obstacle(runs[0], run))), "")
        if not reason and runs[0].evaluation.samples < 2:
            reason = "one input says nothing of the spread"
        if reason:
            found.append(SeedGroup(**head, reason=reason))
            continue
        clean, worst = (
            over_seeds(torch.stack([run.outcomes(column) for run in runs])) for column in ("clean", "worst")
        )
        found.append(SeedGroup(**head, clean=clean, worst=worst))
    return found


def _obstacle(one: Judged, other: Judged) -> str:
    """Return why two runs cannot be compared input by input; empty where they can."""
    for run in (one, other):
        if run.samples is None:
            return f"'{run.name}' has no per-sample table beside its report"
    if one.evaluation.samples != other.evaluation.samples:
        return f"they were evaluated on {one.evaluation.samples} and on {other.evaluation.samples} inputs"
    ours, theirs = one.evaluation.inputs, other.evaluation.inputs
    same = all(_column(one, name) == _column(other, name) for name in ("index", "label"))
    if not same or (ours and theirs and ours != theirs):
        return "they were evaluated on different inputs"
    return ""


def _column(run: Judged, name: str) -> list[str]:
    return [] if run.samples is None else [str(value) for value in run.samples.columns.get(name, [])]
