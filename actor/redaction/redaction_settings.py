"""Settings of redaction, for every part that records what people say."""

from typing import Literal

from pydantic import Field

from streams.core.settings_section import SettingsSection

Kind = Literal["emails", "phones", "cards", "keys"]


class RedactionSettings(SettingsSection):
    """Redaction: what is removed from text before it leaves the process."""

    redact: tuple[Kind, ...] = ("emails", "phones", "cards", "keys")
    """What is removed from episodes and feedback before they leave the process. A redacted episode keeps no token ids. Empty: nothing is removed."""
    redact_with: Literal["rules", "presidio"] = "rules"
    """``rules``: regular expressions and checksums. ``presidio`` also finds names, places and more with its own models; install it first. It is
    slower, but no answer waits for it."""
    presidio_model: str = Field(default="en_core_web_lg", min_length=1, max_length=200)
    """spaCy model, installed as a package, that Presidio uses."""
