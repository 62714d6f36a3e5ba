"""Settings of the optimizer that trains the adapter."""

from typing import Literal, Self

from pydantic import Field, model_validator

from streams.core.settings_section import SettingsSection


class OptimizerSettings(SettingsSection):
    """The optimizer (AdamW) and its learning rate."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Learning rate: the highest one where it warms up or falls."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises to ``learning_rate``, in equal parts. 0: no warm-up."""
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls after the warm-up (learner/runs/learning_rate.py)."""
    schedule_steps: int = Field(default=0, ge=0)
    """The step at which a falling learning rate has reached its lowest value, where it stays. Needed with ``linear`` and ``cosine``."""
    learning_rate_floor: float = Field(default=0.1, ge=0, le=1)
    """Lowest value of a falling learning rate, as a part of ``learning_rate``. At 0 a ring that goes on learns nothing any more."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger norm are scaled down to this one."""
    updates_per_step: int = Field(default=1, ge=1)
    """Optimizer updates on the same rollouts."""

    @model_validator(mode="after")
    def _a_falling_rate_has_an_end(self) -> Self:
        if self.learning_rate_schedule != "constant" and self.schedule_steps <= self.warmup_steps:
            raise ValueError(
                f"learner.learning_rate_schedule = {self.learning_rate_schedule} needs learner.schedule_steps above"
                f" learner.warmup_steps = {self.warmup_steps}; it is {self.schedule_steps}"
            )
        return self
