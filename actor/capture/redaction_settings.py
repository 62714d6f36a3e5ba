"""Settings of redaction, of whichever part keeps what people say."""

from typing import Literal

from pydantic import Field

from streams.core.settings_section import SettingsSection

Kind = Literal["emails", "phones", "cards", "keys"]


class RedactionSettings(SettingsSection):
    """What must not leave the process."""

    redact: tuple[Kind, ...] = ("emails", "phones", "cards", "keys")
    """What is taken out of episodes and feedback before they leave the process; an episode that was redacted keeps no token ids. Empty: nothing."""
    redact_with: Literal["rules", "presidio"] = "rules"
    """``presidio`` finds names, places and more by its own models; install it first. It is slower; no answer waits for it."""
    presidio_model: str = Field(default="en_core_web_lg", min_length=1, max_length=200)
    """spaCy model, installed as a package, that Presidio reads with."""
