"""From a trained network to a spiking one with the same weights."""

from stalwart.convert.balance import balance_thresholds
from stalwart.convert.copy import spiking_copy

__all__ = ["balance_thresholds", "spiking_copy"]
