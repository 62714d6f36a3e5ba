"""Settings of the OTLP receiver (``otlp.*``)."""

from pathlib import Path

from pydantic import Field

from actor.redaction.redaction_settings import RedactionSettings
from streams.outbox.outbox_settings import OutboxSettings


class OtlpSettings(OutboxSettings, RedactionSettings):
    """Turns OpenTelemetry spans of agents that are served elsewhere into episodes (``tidemill run otlp``)."""

    host: str = "127.0.0.1"
    """Address to listen on. Any address but loopback needs ``keys_file`` or an authenticating proxy in front."""
    port: int = Field(default=4318, ge=0, le=65535)
    """Port of OTLP over HTTP; exporters send to ``/v1/traces``. 0: a free one, which the log names."""
    beside_ring: bool = False
    """Run it as a part of ``tidemill up`` too."""
    keys_file: Path | None = None
    """File of hashed API keys (``tidemill keys add``); a sender needs the scope ``talk``. None: requests need no key."""
    max_request_bytes: int = Field(default=16 << 20, ge=1024, le=1 << 30)
    """Largest export after decompression. A larger one gets 413."""
    drain_s: float = Field(default=5.0, ge=0, le=600)
    """After a stop, waiting events are sent for this long. The rest are sent after the next start."""
