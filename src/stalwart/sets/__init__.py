"""Floor 1: threat models, one object for attacks (project, sample, steepest) and for bounds (support, bounds)."""

from stalwart.sets.base import ThreatSet
from stalwart.sets.box import Box
from stalwart.sets.events import Events
from stalwart.sets.l0 import L0
from stalwart.sets.l1 import L1
from stalwart.sets.l2 import L2
from stalwart.sets.linf import Linf
from stalwart.sets.relative import RelativeBox
from stalwart.sets.table import SETS

__all__ = ["L0", "L1", "L2", "SETS", "Box", "Events", "Linf", "RelativeBox", "ThreatSet"]
