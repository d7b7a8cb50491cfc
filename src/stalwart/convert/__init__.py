"""From a trained network to a spiking one with the same weights. The room itself can be called: ``sw.convert(model, ...)``."""

import sys
import types
from typing import Any

from stalwart.convert.balance import balance_thresholds
from stalwart.convert.compare import Comparison, compare
from stalwart.convert.copy import spiking_copy
from stalwart.convert.pipeline import convert
from stalwart.convert.prepare import prepare
from stalwart.convert.table import METHODS
from stalwart.convert.tandem import Tandem

__all__ = ["METHODS", "Comparison", "Tandem", "balance_thresholds", "compare", "convert", "prepare", "spiking_copy"]


class _Room(types.ModuleType):
    """A package whose name is also that of its main function, so that neither hides the other."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return convert(*args, **options)


sys.modules[__name__].__class__ = _Room
