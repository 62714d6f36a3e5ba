"""Settings of the optimizer that trains the adapter."""

from pydantic import Field

from streams.core.settings_section import SettingsSection


class OptimizerSettings(SettingsSection):
    """The optimizer (AdamW)."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Learning rate, constant."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger norm are scaled down to this one."""
    updates_per_step: int = Field(default=1, ge=1)
    """Optimizer updates on the same rollouts."""
