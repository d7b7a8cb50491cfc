"""Floor 3: suites of attacks, judging on fresh draws, statistics, masking diagnostics."""

from stalwart.evaluation.evaluate import evaluate, steps_of
from stalwart.evaluation.events import FlipRow, PatchRow, few_flips, judge_patch
from stalwart.evaluation.results import Evaluation, Rate
from stalwart.evaluation.samples import Samples
from stalwart.evaluation.suites import SUITES

__all__ = [
    "SUITES",
    "Evaluation",
    "FlipRow",
    "PatchRow",
    "Rate",
    "Samples",
    "evaluate",
    "few_flips",
    "judge_patch",
    "steps_of",
]
