"""Settings of the updater: when it refits, and when it publishes a reward model."""

from pydantic import Field

from streams.core.settings_section import SettingsSection


class UpdaterSettings(SettingsSection):
    """The updater: batches of labels, and when a version is published."""

    min_labels: int = Field(default=16, ge=4, le=100_000)
    """Labels with a verdict needed before the first version is published."""
    min_each_verdict: int = Field(default=3, ge=1, le=10_000)
    """Good labels, and bad labels, needed before the first version is published."""
    batch_labels: int = Field(default=128, ge=1, le=10_000)
    """Most labels read before a refit."""
    batch_within_s: float = Field(default=0.05, gt=0, le=60)
    """How long labels are gathered before a refit. Labels that arrive during a refit wait for the next one."""
    publish_window_labels: int = Field(default=200, ge=10, le=100_000)
    """Newest labels on which a new version must be no worse than the last published one."""
    publish_tolerance_se: float = Field(default=1.0, ge=0, le=10)
    """A version is worse when its log loss is higher by more than this many standard errors of the difference."""
    drift_hold_labels: int = Field(default=50, ge=0, le=100_000)
    """During a drift alarm nothing is published until this many labels have arrived since the change. 0: the alarm does not hold versions back."""
    validation_window_labels: int = Field(default=200, ge=10, le=100_000)
    """Newest labels over which prequential (test-then-train) accuracy and calibration are measured."""
    web_port: int = Field(default=0, ge=0, le=65535)
    """Port of Faust's own web pages on the loopback interface. 0: off."""
