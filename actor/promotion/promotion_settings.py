"""All settings of promotion (``promotion.*``): who moves adapters to production, when, and on what evidence."""

from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import croniter
from pydantic import Field, SecretStr, field_validator

from actor.promotion.canary_settings import CanarySettings
from actor.promotion.promotion_gate_settings import PromotionGateSettings
from streams.core.settings_section import SettingsSection


class PromoterSettings(SettingsSection):
    """The promoter: mode, schedule, and how it asks the actors."""

    mode: Literal["newest", "gated"] = "newest"
    """``newest``: each replica serves the newest adapter that it has attested. ``gated``: only Promotion events move production."""
    approval: Literal["auto", "human"] = "auto"
    """``human``: an adapter that was better in canary waits until a person approves it. ``auto``: it is promoted."""
    cron: str = "0 3 * * *"
    """When the day's candidates are collected: minute, hour, day of month, month, day of week."""
    time_zone: str = "UTC"
    """Time zone of ``cron``, such as ``Europe/Berlin``."""
    tries_per_night: int = Field(default=3, ge=1, le=100)
    """Candidates tried in one night, newest first."""
    poll_s: float = Field(default=2.0, gt=0, le=600)
    """Seconds between two checks of the promoter."""
    actor_url: str = ""
    """Base URL of the actors' OpenAI API. Empty: this machine's, ``http://<actor.host>:<actor.port>/v1``."""
    api_key: SecretStr | None = None
    """API key of scope ``talk``, where the actors require one. Best given as TIDEMILL_PROMOTION__API_KEY. Never printed, logged or written to a
    file."""
    at_once: int = Field(default=4, ge=1, le=1000)
    """Questions that the promoter asks at the same time."""
    answer_tokens: int = Field(default=128, ge=1, le=100_000)
    """Longest answer that it asks for."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Sampling temperature of those answers."""

    @field_validator("cron")
    @classmethod
    def _cron_can_be_read(cls, cron: str) -> str:
        if not croniter.is_valid(cron) or len(cron.split()) != 5:
            raise ValueError(f"promotion.cron = {cron!r} must be five fields, such as 0 3 * * *")
        return cron

    @field_validator("time_zone")
    @classmethod
    def _zone_exists(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"promotion.time_zone = {zone} is not a time zone; write one such as UTC or Europe/Berlin") from None
        return zone


class PromotionSettings(PromoterSettings, PromotionGateSettings, CanarySettings):
    """How an adapter reaches production."""
