"""What the feedback on an episode amounts to, channel by channel, and how much each channel counts. Pure.

A *channel* is a way in which people, their tools or a critic speak: thumbs, ratings, comparisons, corrections, implicit signals (what people
do), outcomes (what tools report), critic. They stay apart on the label, each with its weight, so that what counted can be read there.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator

from streams.core.events import Channel, Evidence, FeedbackKind, Vote
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
    """Which signals say what, and how much each channel counts. An entry that is given replaces that entry alone; 0 silences it."""

    channels: dict[str, float] = Field(default=CHANNELS)
    """Weight of each channel, beside a person's thumb at 1."""
    implicit: dict[str, float] = Field(default=IMPLICIT)
    """Signals that people give by what they do, from -1 (surely bad) to 1 (surely good); one person's add up, to at most 1 either way."""
    outcomes: dict[str, float] = Field(default=OUTCOMES)
    """Signals from tools, from -1 to 1; the newest of each sender counts."""
    critic: dict[str, float] = Field(default=CRITIC)
    """Signals from a critic, from -1 to 1; the newest of each critic counts. Never mixed up with people's."""

    @field_validator("channels", "implicit", "outcomes", "critic", mode="before")
    @classmethod
    def _defaults_stay(cls, given: Any, info: Any) -> Any:
        return {**cls.model_fields[info.field_name].default, **given} if isinstance(given, Mapping) else given

    @field_validator("channels")
    @classmethod
    def _no_weight_is_negative(cls, weights: dict[str, float]) -> dict[str, float]:
        if unknown := set(weights) - set(CHANNELS):
            raise ValueError(f"no channel is called {', '.join(sorted(unknown))}; they are {', '.join(CHANNELS)}")
        if any(not 0 <= weight <= 100 for weight in weights.values()):
            raise ValueError("a channel's weight lies between 0 and 100")
        return weights

    @field_validator("implicit", "outcomes", "critic")
    @classmethod
    def _signals_lie_between_bad_and_good(cls, signals: dict[str, float]) -> dict[str, float]:
        if any(not -1 <= says <= 1 for says in signals.values()):
            raise ValueError("a signal says something between -1 (bad) and 1 (good)")
        return signals


def voices(votes: Iterable[Vote]) -> dict[str, Vote]:
    """Each person's newest thumb or rating: one voice each (votes come oldest first)."""
    return {vote.user_id: vote for vote in votes if vote.value is not None}


def evidence_of(votes: Sequence[Vote], settings: EvidenceSettings) -> tuple[Evidence, ...]:
    """The channels that say something, in the order of ``Channel``. Votes come oldest first.

    Thumbs and ratings share one weight by the number of people, so that an episode counts as one label however many people spoke.
    """
    spoken = voices(votes).values()
    thumbs = [v for v in spoken if v.kind is FeedbackKind.THUMB]
    ratings = [v for v in spoken if v.kind is FeedbackKind.RATING]
    found = [
        _of_people(Channel.THUMBS, thumbs, len(thumbs) / max(1, len(spoken))),
        _of_people(Channel.RATINGS, ratings, len(ratings) / max(1, len(spoken))),
        _of_words(Channel.COMPARISONS, [v for v in votes if v.kind is FeedbackKind.COMPARISON]),
        _of_words(Channel.CORRECTIONS, [v for v in votes if v.kind is FeedbackKind.CORRECTION]),
        _of_signals(Channel.IMPLICIT, votes, settings.implicit, newest_only=False),
        _of_signals(Channel.OUTCOMES, votes, settings.outcomes, newest_only=True),
        _of_signals(Channel.CRITIC, votes, settings.critic, newest_only=True),
    ]
    weighed = [e.model_copy(update={"weight": e.weight * settings.channels[e.channel]}) for e in found if e is not None]
    return tuple(e for e in weighed if e.weight > 0)


def _of_people(channel: Channel, votes: Sequence[Vote], share: float) -> Evidence | None:
    values = sorted(v.value for v in votes if v.value is not None)
    return Evidence(channel=channel, value=sum(values) / len(values), weight=share, feedback_ids=_ids(votes)) if values else None


def _of_words(channel: Channel, votes: Sequence[Vote]) -> Evidence | None:
    return Evidence(channel=channel, weight=1.0, feedback_ids=_ids(votes)) if votes else None


def _of_signals(channel: Channel, votes: Sequence[Vote], says: Mapping[str, float], newest_only: bool) -> Evidence | None:
    """Good and bad are set against each other by person; what is left over is the weight, averaged over the people."""
    declared = [v for v in votes if v.signal is not None and v.signal in says]
    by_person: dict[str, list[Vote]] = defaultdict(list)
    for vote in declared:
        by_person[vote.user_id] = [vote] if newest_only else [*by_person[vote.user_id], vote]
    counted = [vote for spoken in by_person.values() for vote in spoken]
    opinions = sorted(max(-1.0, min(1.0, sum(says[v.signal] for v in spoken if v.signal))) for spoken in by_person.values())
    strength = sum(abs(o) for o in opinions)
    if not strength:
        return None
    good = sum(o for o in opinions if o > 0)
    return Evidence(channel=channel, value=good / strength, weight=strength / len(opinions), feedback_ids=_ids(counted))


def _ids(votes: Iterable[Vote]) -> tuple[str, ...]:
    return tuple(sorted(vote.feedback_id for vote in votes))
