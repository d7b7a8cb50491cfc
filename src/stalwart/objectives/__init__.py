"""Floor 3: training objectives. Each is a frozen record; ``Trainee`` wraps one around a model."""

from stalwart.objectives.base import Moment, Objective, Trainee
from stalwart.objectives.table import OBJECTIVES

__all__ = ["OBJECTIVES", "Moment", "Objective", "Trainee"]
