"""Settings of the outbox, for every part that has one."""

from typing import Literal

from pydantic import Field

from streams.core.settings_section import SettingsSection


class OutboxSettings(SettingsSection):
    """The outbox: events on disk that wait for Kafka. How many, for how long, and how durably."""

    outbox_events: int = Field(default=50_000, ge=1, le=10_000_000)
    """Most events that wait for Kafka."""
    outbox_mib: int = Field(default=1024, ge=1, le=1 << 20)
    """Most MiB of events that wait for Kafka; the file on disk takes a little more."""
    outbox_age_h: float = Field(default=168.0, gt=0, le=87_600)
    """An event that has waited for this many hours is dropped and counted. Only hours in which this part runs count, so a jump of the clock drops
    nothing."""
    outbox_when_full: Literal["keep_oldest", "keep_newest"] = "keep_oldest"
    """What is dropped when there is no room. ``keep_oldest``: the new event. ``keep_newest``: those that have waited longest. Dropped events are
    counted and raise an alert."""
    outbox_fsync: Literal["off", "batch", "each"] = "batch"
    """What a kill or a power cut may lose. ``off``: no fsync; a kill loses what is being gathered (``outbox_linger_ms``), a power cut the last
    seconds. ``batch``: fsync in the background; either loses what is being gathered. ``each``: fsync before the event is accepted; neither loses
    anything, but each answer waits for the disk."""
    outbox_linger_ms: int = Field(default=25, ge=0, le=1000)
    """Milliseconds for which events are gathered before they are written to disk, and once more before they are sent."""
