"""From a trained network to a spiking one with the same weights."""

from stalwart.convert.balance import balance_thresholds
from stalwart.convert.compare import Comparison, compare
from stalwart.convert.copy import spiking_copy
from stalwart.convert.pipeline import convert
from stalwart.convert.prepare import prepare
from stalwart.convert.table import METHODS
from stalwart.convert.tandem import Tandem

__all__ = ["METHODS", "Comparison", "Tandem", "balance_thresholds", "compare", "convert", "prepare", "spiking_copy"]
