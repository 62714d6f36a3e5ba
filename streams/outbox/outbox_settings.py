"""Settings of the outbox, of whichever part keeps one."""

from typing import Literal

from pydantic import Field

from streams.core.settings_section import SettingsSection


class OutboxSettings(SettingsSection):
    """What is kept on disk for a Kafka that is away, and how surely."""

    outbox_events: int = Field(default=50_000, ge=1, le=10_000_000)
    """Most events that wait for Kafka."""
    outbox_mib: int = Field(default=1024, ge=1, le=1 << 20)
    """Most MiB of events that wait for Kafka; the file on disk takes a little more."""
    outbox_age_h: float = Field(default=168.0, gt=0, le=87_600)
    """An event that has waited for so many hours is dropped and counted. Hours in which this part runs, so that no jump of a clock drops anything."""
    outbox_when_full: Literal["keep_oldest", "keep_newest"] = "keep_oldest"
    """What gives way when there is no room: the event that comes, or those that have waited longest. Either is counted, and an alert tells."""
    outbox_fsync: Literal["off", "batch", "each"] = "batch"
    """What a kill or a power cut may take. ``off``: nothing is synced; a kill takes what is gathered (``outbox_linger_ms``), a power cut the
    last seconds. ``batch``: synced in the background; either takes what is gathered. ``each``: synced before the event is accepted; neither takes
    anything, but each answer waits for the disk."""
    outbox_linger_ms: int = Field(default=25, ge=0, le=1000)
    """Milliseconds for which events are gathered before they are written to disk, and again before they are sent."""
