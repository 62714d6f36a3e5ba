"""Settings of the critic (``critic.*``)."""

from pydantic import Field, SecretStr

from streams.core.settings_section import SettingsSection


class CriticSettings(SettingsSection):
    """A model that judges episodes by a rubric. Its verdicts are a channel of their own, never mixed with people's. Off without a rubric."""

    rubric: tuple[str, ...] = ()
    """Sentences that are true of a good answer, such as ``It answers what was asked.`` Empty: answers are not judged."""
    reply_rubric: tuple[str, ...] = ()
    """Sentences that are true of a person's next turn when the answer before it was good, such as ``The person got what they asked for.`` Empty: next
    turns are not judged."""
    model: str = Field(default="base", min_length=1, max_length=200)
    """Model that judges, by the name under which the actor serves it. ``base``: the base without an adapter."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Part of the episodes that are judged. An episode's id decides whether it is one of them."""
    margin: float = Field(default=0.1, ge=0, lt=0.5)
    """No verdict when the mean P(yes) lies within 0.5 ± margin."""
    at_once: int = Field(default=4, ge=1, le=1000)
    """Sentences judged at the same time."""
    actor_url: str = ""
    """Base URL of an OpenAI API that returns logprobs. Empty: this machine's actor."""
    api_key: SecretStr | None = None
    """API key of scope ``talk``, where that API requires one. Best given as TIDEMILL_CRITIC__API_KEY. Never printed, logged or written to a file."""

    @property
    def has_rubric(self) -> bool:
        """True when there is a sentence to judge by."""
        return bool(self.rubric or self.reply_rubric)
