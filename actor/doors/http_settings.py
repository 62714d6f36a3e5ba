"""Settings of an actor's HTTP server: address, keys, limits."""

import re
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from streams.core.settings_section import SettingsSection


class HttpSettings(SettingsSection):
    """The HTTP server: address, keys, limits on requests."""

    host: str = "127.0.0.1"
    """Address to listen on. Any address but loopback needs ``keys_file`` or an authenticating proxy in front."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port of the OpenAI-compatible server. 0: ``demo`` and ``up`` choose a free one."""
    keys_file: Path | None = None
    """File of hashed API keys (``tidemill keys add``), each with its tenant, scopes and rate limit. None: requests need no key."""
    replica: str = Field(default="", max_length=200)
    """Name of this replica in attestations and episodes. Empty: host name and port."""
    max_request_bytes: int = Field(default=4 << 20, ge=1024, le=1 << 30)
    """Largest request body. A larger one gets 413."""
    max_feedback_bytes: int = Field(default=256 << 10, ge=1024, le=1 << 24)
    """Largest feedback body. A larger one gets 413."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of web pages that may send feedback from a browser, such as ``https://shop.example``, besides the actor's own page. Requests that do
    not come from a browser have no origin."""
    stop_delay_s: float = Field(default=0.0, ge=0, le=600)
    """After a stop, new requests are taken for this long while ``/readyz`` already answers 503, so that a balancer can take this replica out."""
    drain_s: float = Field(default=5.0, ge=0, le=600)
    """After that, running answers may go on for this long. What is then left gets an error with status 503."""
    hang_s: float = Field(default=300.0, gt=0, le=86_400)
    """``/healthz`` answers 503 when the engine has answers to make and no token came for this long."""

    @model_validator(mode="after")
    def _replica_fits(self) -> Self:
        if any(ord(character) < 32 for character in self.replica):
            raise ValueError("actor.replica must not hold control characters")
        return self

    @field_validator("allowed_origins")
    @classmethod
    def _origins_are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(r"https?://[^/\s?#@]+", origin):
                raise ValueError(f"actor.allowed_origins: {origin!r} is no origin; write scheme and host, such as https://shop.example")
        return tuple(origin.lower() for origin in origins)
