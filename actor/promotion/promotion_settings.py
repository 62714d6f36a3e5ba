"""Settings of promotion: who moves adapters to production, on what evidence, and when."""

from pathlib import Path
from typing import Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import croniter
from pydantic import Field, SecretStr, field_validator, model_validator

from streams.core.settings_section import SettingsSection


class PromotionSettings(SettingsSection):
    """How an adapter comes to answer for the policy."""

    mode: Literal["newest", "gated"] = "newest"
    """``newest``: each replica serves the newest adapter that it has attested. ``gated``: production moves by Promotion events alone."""
    approval: Literal["auto", "human"] = "auto"
    """``human``: what has shown itself better in canary waits until a person approves."""
    cron: str = "0 3 * * *"
    """When the day's candidates are collected: minute, hour, day of month, month, day of week."""
    time_zone: str = "UTC"
    """Zone in which ``cron`` is read, such as ``Europe/Berlin``."""
    tries_per_night: int = Field(default=3, ge=1, le=100)
    """Candidates tried, newest first, before the night is given up."""
    poll_s: float = Field(default=2.0, gt=0, le=600)
    """How often the promoter looks at where things stand."""
    actor_url: str = ""
    """Base URL of the actors' OpenAI API; empty: this machine's, ``http://<actor.host>:<actor.port>/v1``."""
    api_key: SecretStr | None = None
    """Key of scope ``talk`` where the actors ask for one; best given as TIDEMILL_PROMOTION__API_KEY. Never printed, logged or written to a file."""
    at_once: int = Field(default=4, ge=1, le=1000)
    """Questions that the promoter asks at the same time."""
    answer_tokens: int = Field(default=128, ge=1, le=100_000)
    """Longest answer that it asks for."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Of those answers."""
    prompts: int = Field(default=128, ge=1, le=100_000)
    """Recent prompts on which candidate and production are compared before anybody sees the candidate."""
    shadow_prompts: int = Field(default=64, ge=0, le=100_000)
    """Prompts that came in while in shadow, answered by the candidate too, unseen by people. 0: no shadow stage's questions."""
    max_shadow_h: float = Field(default=24.0, gt=0, le=10_000)
    """With fewer questions after so long in shadow, the candidate is rejected."""
    prompts_kept: int = Field(default=2000, ge=1, le=10_000_000)
    """Recent episodes of the policy held in memory to choose prompts from."""
    seed: int = 0
    """Of sampling prompts and of bootstraps."""
    min_win_rate: float = Field(default=0.5, ge=0, le=1)
    """Gate: the reward model must prefer the candidate's answer in more than that part of the prompts, by the interval's lower end."""
    min_shadow_win_rate: float = Field(default=0.4, ge=0, le=1)
    """The same in shadow, where it is a check and no proof; also by the interval's lower end."""
    max_retention_drop: float = Field(default=0.1, ge=0, le=1)
    """Gate: part of the frozen probes that the base answers rightly and the candidate may lose."""
    retention_file: Path | None = None
    """JSON lines of ``{"prompt": …, "expects": [regular expressions, one of which must be found]}``; none: those that come with Tidemill."""
    max_kl_nats: float = Field(default=1.0, gt=0, le=100)
    """Gate: KL from the base, nats a token, as the learner measured it last."""
    max_length_ratio: float = Field(default=2.0, gt=1, le=100)
    """Gate: the candidate's median answer may be so many times as long, or as short, as production's."""
    max_refusal_rise: float = Field(default=0.1, ge=0, le=1)
    """Gate: further part of the answers that may decline."""
    min_familiar_words: float = Field(default=0.2, ge=0, le=1)
    """Gate: part of the words in the candidate's answers that occur in production's or the base's to the same prompts; another language has
    almost none."""
    max_ece: float = Field(default=0.2, ge=0, le=1)
    """Gate: expected calibration error of the reward model on labels it had not seen."""
    min_auc: float = Field(default=0.6, ge=0, le=1)
    """Gate: chance that the reward model predicted a good answer above a bad one, on labels it had not seen."""
    min_reward_labels: int = Field(default=50, ge=1, le=10_000_000)
    """Gate: unseen labels that those two figures rest on, at least."""
    min_replicas: int = Field(default=1, ge=1, le=10_000)
    """Gate: replicas that must have attested the candidate, at least."""
    replica_memory_h: float = Field(default=1.0, ge=0.5, le=10_000)
    """Replicas heard of within this time must all have attested the candidate. Each says every ten minutes that it serves what it attested."""
    attest_timeout_s: float = Field(default=900.0, gt=0, le=86_400)
    """How long a candidate may take to be attested by all of them."""
    commands: tuple[tuple[str, ...], ...] = ()
    """Gate: your own evaluations, each a program with its arguments; exit status 0 passes. No shell. The names come as TIDEMILL_CANDIDATE,
    TIDEMILL_PRODUCTION and TIDEMILL_BASE_URL."""
    command_timeout_s: float = Field(default=1800.0, gt=0, le=86_400)
    """A command that takes longer is ended and has failed."""
    canary_share: float = Field(default=0.1, gt=0, lt=1)
    """Part of the conversations that the canary answers."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Canary: chance of ever calling better what is not, however often one looks."""
    harm_alpha: float = Field(default=0.1, gt=0, lt=1)
    """Canary: chance of ever stopping for harm what does none."""
    min_uplift: float = Field(default=0.0, ge=-1, lt=1)
    """Canary: by how much the mean verdict must be better, by the interval's lower end, as a part (0.02 is two points)."""
    min_canary_labels: int = Field(default=50, ge=1, le=10_000_000)
    """Canary: labelled conversations before a promotion; harm stops it at any moment."""
    max_canary_labels: int = Field(default=2000, ge=1, le=10_000_000)
    """Canary: with so many and nothing shown, it is rejected."""
    max_canary_h: float = Field(default=72.0, gt=0, le=10_000)
    """Canary: after so long with nothing shown, it is rejected."""

    watch_h: float = Field(default=72.0, ge=0, le=10_000)
    """So long a new production is watched, and rolled back by itself for harm or by alarm. 0: never by itself."""
    held_back_share: float = Field(default=0.05, ge=0, lt=0.5)
    """Part of the conversations that the production before goes on answering meanwhile, to compare with. 0: nothing is compared."""

    @property
    def promoted_share(self) -> float:
        """Part of the conversations that a new production answers from the start."""
        return 1.0 - self.held_back_share if self.watch_h else 1.0

    @field_validator("cron")
    @classmethod
    def _cron_can_be_read(cls, cron: str) -> str:
        if not croniter.is_valid(cron) or len(cron.split()) != 5:
            raise ValueError("promotion.cron must be five fields, such as 0 3 * * *")
        return cron

    @field_validator("time_zone")
    @classmethod
    def _zone_exists(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"promotion.time_zone = {zone} is no time zone") from None
        return zone

    @model_validator(mode="after")
    def _exposure_has_room(self) -> Self:
        if self.min_canary_labels > self.max_canary_labels:
            raise ValueError("promotion.min_canary_labels must not exceed promotion.max_canary_labels")
        return self
