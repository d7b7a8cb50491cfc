"""Floor 4: the training loop, its settings, checkpoints and data-parallel processes."""

from stalwart.training.config import Optimiser, Schedule, Training, Validation
from stalwart.training.distributed import Ranks, ranks
from stalwart.training.loop import Fit

__all__ = ["Fit", "Optimiser", "Ranks", "Schedule", "Training", "Validation", "ranks"]
