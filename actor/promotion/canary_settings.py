"""Settings of the canary, and of the watch over a new production."""

from typing import Self

from pydantic import Field, model_validator

from streams.core.settings_section import SettingsSection


class CanarySettings(SettingsSection):
    """Canary, and the watch over a new production."""

    canary_share: float = Field(default=0.1, gt=0, lt=1)
    """Part of the conversations that the canary answers."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Largest chance of promoting a canary that is not better, however often the figures are looked at."""
    harm_alpha: float = Field(default=0.1, gt=0, lt=1)
    """Largest chance of stopping for harm a canary that does none, however often the figures are looked at."""
    min_uplift: float = Field(default=0.0, ge=-1, lt=1)
    """Smallest rise of the mean verdict, by the lower end of the interval, as a fraction (0.02 is two points)."""
    min_canary_labels: int = Field(default=50, ge=1, le=10_000_000)
    """Labelled conversations needed before a promotion. Harm stops a canary at any moment."""
    max_canary_labels: int = Field(default=2000, ge=1, le=10_000_000)
    """A canary that has shown nothing after this many labelled conversations is rejected."""
    max_canary_h: float = Field(default=72.0, gt=0, le=10_000)
    """A canary that has shown nothing after this many hours is rejected."""

    watch_h: float = Field(default=72.0, ge=0, le=10_000)
    """Hours for which a new production is watched, and rolled back automatically for harm or on an alarm. 0: never automatically."""
    held_back_share: float = Field(default=0.05, ge=0, lt=0.5)
    """Part of the conversations that the rollback target (the production before) goes on answering meanwhile, for comparison. 0: no comparison."""

    @property
    def promoted_share(self) -> float:
        """Part of the conversations that a new production answers from the start."""
        return 1.0 - self.held_back_share if self.watch_h else 1.0

    @model_validator(mode="after")
    def _exposure_has_room(self) -> Self:
        if self.min_canary_labels > self.max_canary_labels:
            raise ValueError("promotion.min_canary_labels must not exceed promotion.max_canary_labels")
        return self
