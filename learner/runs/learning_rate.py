"""The learning rate of a step: a warm-up, then constant or falling. Pure: a function of the step's number, so that a restart changes nothing."""

import math

from learner.runs.optimizer_settings import OptimizerSettings


def learning_rate(settings: OptimizerSettings, step: int) -> float:
    """The rate of step number ``step``, from 1.

    During ``w = warmup_steps`` it is ``rate * step / w``. Then, with ``p = (step - w) / (schedule_steps - w)`` up to 1, it falls from the rate to
    ``learning_rate_floor`` times it: ``linear`` along ``1 - p``, ``cosine`` along ``(1 + cos(pi p)) / 2`` (Loshchilov and Hutter 2017, eq. 5).
    """
    s = settings
    if step < s.warmup_steps:
        return s.learning_rate * step / s.warmup_steps
    if s.learning_rate_schedule == "constant":
        return s.learning_rate
    passed = min(1.0, (step - s.warmup_steps) / (s.schedule_steps - s.warmup_steps))
    left = 1 - passed if s.learning_rate_schedule == "linear" else (1 + math.cos(math.pi * passed)) / 2
    return s.learning_rate * (s.learning_rate_floor + (1 - s.learning_rate_floor) * left)
