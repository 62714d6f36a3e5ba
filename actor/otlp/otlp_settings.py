"""Settings of the door for agents' telemetry."""

from pathlib import Path

from pydantic import Field

from actor.capture.redaction_settings import RedactionSettings
from streams.outbox.outbox_settings import OutboxSettings


class OtlpSettings(OutboxSettings, RedactionSettings):
    """Spans of agents that are served elsewhere, as episodes (``tidemill run otlp``)."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs ``keys_file``, or a front that checks who asks."""
    port: int = Field(default=4318, ge=0, le=65535)
    """Port of OTLP over HTTP; exporters send to ``/v1/traces``. 0 takes a free one, which the log names."""
    beside_ring: bool = False
    """``tidemill up`` runs it too."""
    keys_file: Path | None = None
    """File of hashed keys (``tidemill keys add``); a sender needs the scope ``talk``. None: nobody is asked for a key."""
    max_request_bytes: int = Field(default=16 << 20, ge=1024, le=1 << 30)
    """Largest export, unpacked; a larger one gets 413."""
    drain_s: float = Field(default=5.0, ge=0, le=600)
    """How long to go on sending what waits after a stop; what is left is sent after the next start."""
