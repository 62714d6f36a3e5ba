"""Settings of the join: what each signal means, how much each channel counts, and how long feedback may take."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pydantic import Field, field_validator

from streams.core.settings_section import SettingsSection

CHANNELS = {
    "thumbs": 1.0,
    "ratings": 1.0,
    "comparisons": 1.0,
    "corrections": 1.0,
    "implicit": 0.2,
    "outcomes": 0.5,
    "critic": 0.2,
}
IMPLICIT = {"copied": 0.5, "retried": -0.5, "abandoned": -0.3, "asked-again": -0.5}
OUTCOMES = {"test-passed": 1.0, "test-failed": -1.0, "form-submitted": 1.0, "form-rejected": -1.0, "task-done": 1.0, "task-failed": -1.0}
CRITIC = {"critic-good": 1.0, "critic-bad": -1.0}


class EvidenceSettings(SettingsSection):
    """What each signal means, and how much each channel counts."""

    channels: dict[str, float] = Field(default=CHANNELS)
    """Weight of each channel; a person's thumb counts 1."""
    implicit: dict[str, float] = Field(default=IMPLICIT)
    """Signals from what people do, from -1 (surely bad) to 1 (surely good). The signals of one person are added, within -1 and 1."""
    outcomes: dict[str, float] = Field(default=OUTCOMES)
    """Signals from tools, from -1 to 1. The newest of each sender counts."""
    critic: dict[str, float] = Field(default=CRITIC)
    """Signals from a critic, from -1 to 1. The newest of each critic counts. They are never mixed with people's."""
    turn_discount: float = Field(default=0.2, ge=0, le=1)
    """A thumb or rating also counts for the answers before it in its conversation: this much for the nearest, its square for the one before that, and
    so on; below 0.05 it counts nothing. An answer with a verdict of its own keeps that one. 0: only the answer itself."""

    @field_validator("channels", "implicit", "outcomes", "critic", mode="before")
    @classmethod
    def _defaults_stay(cls, given: Any, info: Any) -> Any:
        return {**cls.model_fields[info.field_name].default, **given} if isinstance(given, Mapping) else given

    @field_validator("channels")
    @classmethod
    def _no_weight_is_negative(cls, weights: dict[str, float]) -> dict[str, float]:
        if unknown := set(weights) - set(CHANNELS):
            raise ValueError(f"join.channels: no channel is called {', '.join(sorted(unknown))}; the channels are {', '.join(CHANNELS)}")
        if any(not 0 <= weight <= 100 for weight in weights.values()):
            raise ValueError("join.channels: the weight of a channel must lie between 0 and 100")
        return weights

    @field_validator("implicit", "outcomes", "critic")
    @classmethod
    def _signals_lie_between_bad_and_good(cls, signals: dict[str, float]) -> dict[str, float]:
        if any(not -1 <= meaning <= 1 for meaning in signals.values()):
            raise ValueError("the meaning of a signal must lie between -1 (bad) and 1 (good)")
        return signals


class JoinSettings(EvidenceSettings):
    """How feedback is joined to its episode, and how much each kind counts. An entry that you give in a table replaces that entry alone; 0 turns it
    off."""

    window_days: float = Field(default=7.0, gt=0, le=365)
    """Feedback counts when it was given and arrived within this many days of its episode. Later feedback, and feedback whose episode never arrives,
    expires."""
    most_feedback: int = Field(default=1000, ge=1, le=100_000)
    """Most feedback events on one episode. More go to the dead letters, so that nobody can grow a label without limit."""
    batch_records: int = Field(default=2000, ge=1, le=100_000)
    """Most records folded before their labels are acknowledged and the state is committed."""
    cached_episodes: int = Field(default=20_000, ge=0, le=10_000_000)
    """Episodes kept in memory over all partitions. The rest are read from disk."""
    expire_every_s: float = Field(default=5.0, gt=0, le=3600)
    """Seconds between two searches for episodes and feedback that have expired."""

    ledger_every_s: float = Field(default=900.0, ge=0, le=86_400)
    """Seconds between two counts of the ledger, whose result is a metric; a large log is counted less often. 0: never."""
    ledger_span_h: float = Field(default=2.0, gt=0, le=720)
    """A count covers what arrived within so many hours. `tidemill ledger` covers everything."""

    @property
    def window(self) -> timedelta:
        """The window as a span of time."""
        return timedelta(days=self.window_days)
