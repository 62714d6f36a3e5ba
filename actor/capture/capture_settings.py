"""Settings of capture: which answers an actor remembers, and what it records beside them."""

from pydantic import Field

from streams.core.settings_section import SettingsSection


class CaptureSettings(SettingsSection):
    """Capture: what an actor remembers and records of conversations."""

    recent_episodes: int = Field(default=1000, ge=0, le=1_000_000)
    """Episodes kept in memory for ``GET /v1/episodes/{id}``."""
    remembered_answers: int = Field(default=20_000, ge=0, le=1_000_000)
    """Answers remembered for each tenant, to recognise conversations without an ``x-tidemill-conversation`` header. Each takes a kilobyte or less and
    holds no text."""
    replies_as_feedback: bool = True
    """Also record a person's next turn as feedback (kind ``reply``) on the answer before it. The next episode contains it in any case."""
