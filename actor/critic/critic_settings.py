"""Settings of the critic."""

from pydantic import Field, SecretStr

from streams.core.settings_section import SettingsSection


class CriticSettings(SettingsSection):
    """A model that answers a rubric about episodes: one more signal, which is never mixed up with people's. Off without any rubric."""

    rubric: tuple[str, ...] = ()
    """What a good answer does, a sentence each, such as ``It answers what was asked.`` None: answers are not judged by themselves."""
    reply_rubric: tuple[str, ...] = ()
    """What a person's next turn shows when the answer before it was good, a sentence each, such as ``The person got what they asked for.`` None: next
    turns are not read."""
    model: str = Field(default="base", min_length=1, max_length=200)
    """Who judges, by the name that the actor serves it under; ``base`` is the base without any adapter."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Part of the episodes that are judged; which ones is decided by their ids."""
    margin: float = Field(default=0.1, ge=0, lt=0.5)
    """A mean chance of yes within 0.5 ± margin is no verdict."""
    at_once: int = Field(default=4, ge=1, le=1000)
    """Sentences that are asked about at the same time."""
    actor_url: str = ""
    """Base URL of an OpenAI API that tells logprobs; empty: this machine's actor."""
    api_key: SecretStr | None = None
    """Key of scope ``talk`` where it asks for one; best given as TIDEMILL_CRITIC__API_KEY. Never printed, logged or written to a file."""

    @property
    def reads(self) -> bool:
        """True when there is a sentence to ask about."""
        return bool(self.rubric or self.reply_rubric)
