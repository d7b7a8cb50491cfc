"""Learning-rate schedules as pure functions of the time since the start, in epochs."""

import math

from stalwart.training.config import Schedule


def factor(schedule: Schedule, time: float, epochs: int) -> float:
    """Return the factor on the learning rate at ``time`` epochs (fractions count) of a run of ``epochs``."""
    if schedule.name == "cyclic":
        share = time / epochs
        return share / schedule.peak if share < schedule.peak else (1 - share) / (1 - schedule.peak)
    warm = min(1.0, time / schedule.warmup) if schedule.warmup else 1.0
    if schedule.name == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * time / epochs))
    if schedule.name == "step":
        return warm * schedule.gamma ** sum(time >= milestone for milestone in schedule.milestones)
    return warm
