"""A run's robustness as a claim in the form of RobustBench's model records: measured numbers, and nothing made up."""

import math
from collections.abc import Mapping
from typing import Any

from stalwart.attacks.autoattack import MEMBERS, Version
from stalwart.core.errors import InputError, UsageError
from stalwart.core.registry import suggest
from stalwart.evaluation.judge import SELECTION_DRAWS
from stalwart.evaluation.results import Evaluation
from stalwart.report import wording
from stalwart.report.schema import RunReport

TOLD = ("link", "name", "authors", "additional_data", "venue", "architecture", "reported", "footnote")
"""What only the authors can tell; the other fields are measured."""
_OWN_DATA = ("npz", "folder")


def claim(run: RunReport, told: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a run's claim: the public fields, and below ``stalwart`` what a reader needs to judge them.

    Public fields are ``link``, ``name``, ``authors``, ``additional_data``, ``number_forward_passes``, ``dataset``, ``venue``,
    ``architecture``, ``eps``, ``clean_acc``, ``reported``, ``autoattack_acc``, ``footnote`` and ``unreliable``. Accuracies
    are texts in percent with two digits, and what is not known is an empty text. ``autoattack_acc`` counts inputs that all
    attacks of the suite left, so that it is no larger than what AutoAttack alone leaves; ``unreliable`` is true where a
    masking check fired.

    Args:
        run: an evaluated run.
        told: what the authors add, by the names in :data:`TOLD`.

    Raises:
        InputError: the run was not attacked by all members of a version of AutoAttack.
        UsageError: an unknown field, or one that is measured.

    Source: Croce et al., "RobustBench: a standardized adversarial robustness benchmark", 2021, and the records of its model
    zoo.
    """
    evaluation, recipe = run.evaluation, run.recipe or {}
    version = _version(evaluation)
    flags = [*evaluation.flags, run.certificates.order] if run.certificates else list(evaluation.flags)
    fired = [flag.code for flag in flags if flag.fired]
    fields: dict[str, Any] = {
        "link": "",
        "name": "",
        "authors": "",
        "additional_data": _additional_data(run),
        "number_forward_passes": SELECTION_DRAWS if evaluation.rule == "mean-softmax" else 1,
        "dataset": evaluation.dataset,
        "venue": "",
        "architecture": str(recipe.get("model", {}).get("name", "")),
        "eps": wording.radius(evaluation.eps),
        "clean_acc": _percent(evaluation.clean.value),
        "reported": "",
        "autoattack_acc": _percent(evaluation.worst.value),
        "footnote": _footnote(evaluation, version, fired),
        "unreliable": bool(fired),
    }
    for key, value in (told or {}).items():
        fields[key] = _checked(key, value)
    corrupted = run.corruptions
    return fields | {
        "stalwart": {
            "run": run.name,
            "threat": evaluation.threat,
            "split": evaluation.split,
            "samples": evaluation.samples,
            "inputs": evaluation.inputs,
            "seed": evaluation.seed,
            "decision": evaluation.rule,
            "suite": evaluation.suite,
            "autoattack_version": version,
            "clean_interval": [evaluation.clean.low, evaluation.clean.high],
            "autoattack_interval": [evaluation.worst.low, evaluation.worst.high],
            "attacks": [row.name for row in _main(evaluation)],
            "flags": fired,
            "checks": [flag.code for flag in flags],
            "corruptions": None
            if corrupted is None
            else {"mean": corrupted.mean.value, "interval": [corrupted.mean.low, corrupted.mean.high]},
            "environment": run.environment,
        }
    }


def _main(evaluation: Evaluation) -> list[Any]:
    return [row for row in evaluation.attacks if math.isclose(row.eps, evaluation.eps, rel_tol=1e-6)]


def _version(evaluation: Evaluation) -> Version:
    """Return the strongest version of AutoAttack all whose members ran at the main radius."""
    ran = [row.options for row in _main(evaluation) if row.options.get("attack") == "autoattack"]
    for version in ("plus", "standard", "rand"):
        done = {name for options in ran if options.get("version") == version for name in options.get("only", ())}
        if done >= set(MEMBERS[version]):
            return version
    if ran:
        raise InputError(
            f"a claim needs every member of AutoAttack, and the suite '{evaluation.suite}' ran some only at "
            f"{evaluation.threat}; evaluate in an Linf, L2 or L1 ball with --suite autoattack."
        )
    raise InputError(
        f"a claim needs AutoAttack's number, and the suite '{evaluation.suite}' does not run AutoAttack; evaluate the run with "
        "--suite autoattack first."
    )


def _additional_data(run: RunReport) -> bool | str:
    """Return False where the recipe says that all training data was the dataset's own; else nobody knows."""
    name = (run.recipe or {}).get("data", {}).get("name")
    known = name == run.evaluation.dataset and name not in _OWN_DATA and run.conversion is None
    return False if known else ""


def _footnote(evaluation: Evaluation, version: str, fired: list[str]) -> str:
    words = (
        f"On {evaluation.samples} inputs of {evaluation.dataset} ({evaluation.split}); 95 % interval of the robust accuracy "
        f"{100 * evaluation.worst.low:.2f} to {100 * evaluation.worst.high:.2f}. AutoAttack version {version}, by stalwart."
    )
    if evaluation.randomised:
        words += f" The model is randomised, decision rule {evaluation.rule}."
    return words + (f" Masking checks fired: {', '.join(fired)}." if fired else "")


def _checked(key: str, value: str) -> str | bool:
    if key not in TOLD:
        raise UsageError(
            f"a claim takes no field '{key}' from its authors.{suggest(key, TOLD)} It takes: {', '.join(TOLD)}."
        )
    if key == "additional_data":
        if value not in ("true", "false"):
            raise UsageError(f"additional_data is true or false, got '{value}'.")
        return value == "true"
    if key == "reported" and value:
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not 0 <= share <= 100:
            raise UsageError(f"reported is an accuracy in percent, 0 to 100, got '{value}'.")
        return f"{share:.2f}"
    return value


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
