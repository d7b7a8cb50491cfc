"""Floor 3: suites of attacks, judging on fresh draws, statistics, masking diagnostics."""

from stalwart.evaluation.evaluate import Samples, evaluate, steps_of
from stalwart.evaluation.results import Evaluation, Rate
from stalwart.evaluation.suites import SUITES

__all__ = ["SUITES", "Evaluation", "Rate", "Samples", "evaluate", "steps_of"]
