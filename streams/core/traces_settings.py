"""Settings of traces."""

from pydantic import Field

from streams.core.settings_section import SettingsSection


class TracesSettings(SettingsSection):
    """OpenTelemetry spans across capture, join, refit, training step and adapter load. Off unless ``url`` is set."""

    url: str = Field(default="", max_length=2000)
    """Collector to which spans are sent as OTLP over HTTP, such as ``http://127.0.0.1:4318/v1/traces``. Empty: no traces, at no cost."""
