"""The verdict in a label, and whether there are enough labels for a first reward model. Needs no torch, since status and console use it too."""

from collections.abc import Iterable

from reward.settings import RewardSettings
from streams.core.events import Channel, Evidence, FeedbackKind, Label
from streams.join.feedback_channels import newest_votes

ChannelVerdict = tuple[str, float, float]
"""(channel, value, weight) of a channel with a verdict."""


def channel_verdicts(label: Label) -> tuple[tuple[ChannelVerdict, ...], dict[str, float]]:
    """The channels with a verdict, and the weight of each channel. Labels from versions without channels count as thumbs and words of weight 1."""
    if label.evidence is None:
        rated = any(v.kind is FeedbackKind.RATING for v in newest_votes(label.votes).values())
        channel = Channel.RATINGS if rated and all(v.kind is FeedbackKind.RATING for v in newest_votes(label.votes).values()) else Channel.THUMBS
        bare = (Evidence(channel=channel, value=label.verdict, weight=1.0),) if label.verdict is not None else ()
        return _valued(bare), {Channel.CORRECTIONS: 1.0, Channel.COMPARISONS: 1.0}
    return _valued(label.evidence), {e.channel: e.weight for e in label.evidence}


def verdict_in(said: Iterable[ChannelVerdict]) -> float | None:
    """Weighted mean of the channels' verdicts. None when no channel has one."""
    said = tuple(said)
    total = sum(weight for _, _, weight in said)
    return sum(value * weight for _, value, weight in said) / total if total else None


def is_good(verdict: float) -> bool:
    """True when a verdict counts as good."""
    return verdict >= 0.5


def good_and_bad(labels: Iterable[Label]) -> tuple[int, int]:
    """Number of good and of bad labels. Labels without a verdict are neither."""
    verdicts = [verdict for label in labels if (verdict := verdict_in(channel_verdicts(label)[0])) is not None]
    good = sum(map(is_good, verdicts))
    return good, len(verdicts) - good


def lacking(good: int, bad: int, settings: RewardSettings) -> list[str]:
    """What is still missing for a first reward model, such as ``9 of 16 labels``. Empty when there is enough."""
    s = settings
    counts = {"labels": (good + bad, s.min_labels), "thumbs up": (good, s.min_each_verdict), "thumbs down": (bad, s.min_each_verdict)}
    return [f"{have} of {needed} {what}" for what, (have, needed) in counts.items() if have < needed]


def _valued(evidence: Iterable[Evidence]) -> tuple[ChannelVerdict, ...]:
    return tuple((str(e.channel), e.value, e.weight) for e in evidence if e.value is not None)
